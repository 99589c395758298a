// Sequences for the checks and benches of attention and rope: their rows of q, k and v follow from a seed and the position,
// so that any division into steps has the same input. The cache starts full of NaN, as a careless former owner left it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/ops.h"
#include "cpu/attention/attention.h"
#include "cpu/attention/kv_layout.h"
#include "cpu/rope/rope.h"

namespace oarlock::cpu {

struct Chunk {
  int sequence, begin, count;  // tokens [begin, begin + count) of a sequence
};

class Fixture {
 public:
  AttentionShape shape;
  DType dtype;
  bool head_norm;
  std::vector<std::vector<int32_t>> tables;  // of each sequence
  std::vector<uint64_t> contents;            // equal contents are equal tokens at equal positions
  std::vector<char> keys, values;
  std::vector<float> q_norm, k_norm, rotary;
  int max_context;

  Fixture(const AttentionShape& shape_, DType dtype_, bool head_norm_, const std::vector<int>& lengths, uint32_t seed)
      : shape(shape_), dtype(dtype_), head_norm(head_norm_) {
    std::mt19937 random(seed);
    max_context = *std::max_element(lengths.begin(), lengths.end());
    int blocks = 0;
    for (int length : lengths) blocks += (length + kBlockTokens - 1) / kBlockTokens;
    std::vector<int32_t> free(static_cast<size_t>(blocks));
    for (int b = 0; b < blocks; ++b) free[size_t(b)] = b;
    std::shuffle(free.begin(), free.end(), random);
    for (int length : lengths) {
      tables.emplace_back();
      for (int b = 0; b < length; b += kBlockTokens) {
        tables.back().push_back(free.back());
        free.pop_back();
      }
      contents.push_back(random());
    }
    size_t bytes = size_t(blocks * kv_block_bytes(dtype, shape.kv_heads, shape.head_dim)) / 2;
    keys.assign(bytes, char(0xff));
    values.assign(bytes, char(0xff));
    for (int i = 0; i < shape.head_dim; ++i) {
      q_norm.push_back(0.5f + float(random() % 1000) / 1000);
      k_norm.push_back(0.5f + float(random() % 1000) / 1000);
    }
    for (int p = 0; p < max_context; ++p) {
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < shape.head_dim / 2; ++i) {
          double angle = p * std::pow(10000.0, -2.0 * i / shape.head_dim);
          rotary.push_back(float(half == 0 ? std::cos(angle) : std::sin(angle)));
        }
      }
    }
  }

  KvLayer cache() { return {keys.data(), values.data()}; }
  int qkv_columns() const { return (shape.heads + 2 * shape.kv_heads) * shape.head_dim; }

  // One step's arrays; the Batch points into them.
  struct Step {
    std::vector<int32_t> positions, slots, starts, contexts, table;
    std::vector<float> qkv;
    std::vector<char> out;
    Batch batch;
    Tensor qkv_tensor, query_tensor, out_tensor;
  };

  Step make_step(const std::vector<Chunk>& chunks) const {
    Step step;
    size_t width = 1;
    for (const Chunk& chunk : chunks) width = std::max(width, tables[size_t(chunk.sequence)].size());
    step.starts.push_back(0);
    for (const Chunk& chunk : chunks) {
      const auto& table = tables[size_t(chunk.sequence)];
      for (int p = chunk.begin; p < chunk.begin + chunk.count; ++p) {
        step.positions.push_back(p);
        step.slots.push_back(table[size_t(p / kBlockTokens)] * kBlockTokens + p % kBlockTokens);
        append_row(step.qkv, contents[size_t(chunk.sequence)], p);
      }
      step.starts.push_back(int32_t(step.positions.size()));
      step.contexts.push_back(chunk.begin + chunk.count);
      step.table.insert(step.table.end(), table.begin(), table.end());
      step.table.resize(step.starts.size() * width - width, -1);
    }
    const int tokens = int(step.positions.size()), out_columns = shape.heads * shape.head_dim;
    step.out.resize(size_t(tokens) * size_t(out_columns) * size_t(size_of(dtype)));
    step.qkv_tensor = {step.qkv.data(), DType::f32, tokens, qkv_columns(), qkv_columns()};
    step.query_tensor = queries(step.qkv_tensor, dtype, shape);
    step.out_tensor = {step.out.data(), dtype, tokens, out_columns, out_columns};
    Batch& batch = step.batch;
    batch.tokens = tokens;
    batch.sequences = int(chunks.size());
    batch.positions = step.positions.data();
    batch.slots = step.slots.data();
    batch.query_starts = step.starts.data();
    batch.context_lens = step.contexts.data();
    batch.block_tables = step.table.data();
    batch.block_table_stride = int(width);
    return step;
  }

  void rope(const Rope& rope, Step& step) {
    rope.rope_and_cache(step.qkv_tensor, dtype, shape, head_norm ? q_norm.data() : nullptr, head_norm ? k_norm.data() : nullptr,
                        1e-6f, rotary.data(), cache(), step.batch);
  }

 private:
  void append_row(std::vector<float>& rows, uint64_t content, int position) const {
    std::minstd_rand random(uint32_t(content * 7919 + uint64_t(position) * 104729 + 1));
    // Wide enough for peaked softmaxes.
    for (int i = 0; i < qkv_columns(); ++i) rows.push_back(float(int(random() % 4001) - 2000) / 700);
  }
};

inline float element(const std::vector<char>& data, DType dtype, size_t i) {
  if (dtype == DType::bf16) return to_float(reinterpret_cast<const bf16*>(data.data())[i]);
  return reinterpret_cast<const float*>(data.data())[i];
}

}  // namespace oarlock::cpu
