// decoder_check: the whole step on a small random model. Demands that a step allocates nothing once its largest shape has
// been seen, and that a sequence's tokens and log-probabilities are the same bits alone, in company, in any chunking and
// with any number of threads.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/isa.h"
#include "model/executor.h"
#include "model/shared_prefixes.h"

namespace {

std::atomic<long> allocations{0};

void* counted(size_t bytes, size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment < sizeof(void*) ? sizeof(void*) : alignment, bytes) != 0) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new(size_t bytes, std::align_val_t alignment) { return counted(bytes, size_t(alignment)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace oarlock {
namespace {

long step_allocations = 0;  // made inside the last submit

constexpr int kVocab = 515, kHidden = 128, kFfn = 192, kLayers = 2, kBlocks = 64, kWidth = 8;
constexpr int kLength = 400;  // of the text that is compared: more tokens than pass through a layer at once

std::vector<float> random_values(std::mt19937& random, int64_t count, float scale, float mean = 0) {
  std::normal_distribution<float> normal(mean, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

std::unique_ptr<Executor> make_model(DType dtype, WeightFormat format, int threads) {
  ModelConfig config;
  config.layers = kLayers, config.hidden = kHidden, config.heads = 6, config.kv_heads = 2, config.head_dim = 32;
  config.ffn = kFfn, config.vocab = kVocab, config.attention_scale = 0.17677669f, config.qk_norm = true;
  Limits limits;
  limits.max_tokens = 512, limits.max_sequences = 16, limits.max_rows = 512, limits.max_blocks_per_sequence = kWidth;
  limits.max_context = kWidth * kBlockTokens;
  std::mt19937 random(7);
  std::vector<float> rotary(size_t(limits.max_context) * 32);
  for (int p = 0; p < limits.max_context; ++p)
    for (int i = 0; i < 16; ++i) {
      float angle = float(p) * std::pow(10000.f, -float(i) / 16);
      rotary[size_t(p) * 32 + size_t(i)] = std::cos(angle);
      rotary[size_t(p) * 32 + 16 + size_t(i)] = std::sin(angle);
    }
  auto executor = make_cpu_executor(config, limits, rotary.data(), dtype, threads);
  auto load = [&](const std::string& name, std::vector<int64_t> heights, int64_t k, float mean = 0) {
    std::vector<std::vector<float>> memory;
    std::vector<WeightPiece> pieces;
    for (int64_t n : heights) {
      memory.push_back(random_values(random, n * k, k == 1 ? 0.1f : 1.f / std::sqrt(float(k)), mean));
      pieces.push_back({SourceFormat::f32, n, k, memory.back().data()});
    }
    executor->decoder().load(name, pieces, k == 1 ? WeightFormat::f32 : format);
  };
  load("embed", {kVocab}, kHidden);
  load("final_norm", {kHidden}, 1, 1);
  for (int i = 0; i < kLayers; ++i) {
    std::string prefix = "layers." + std::to_string(i) + ".";
    load(prefix + "attn_norm", {kHidden}, 1, 1);
    load(prefix + "qkv", {6 * 32, 2 * 32, 2 * 32}, kHidden);
    load(prefix + "qkv_bias", {10 * 32}, 1);
    load(prefix + "q_norm", {32}, 1, 1);
    load(prefix + "k_norm", {32}, 1, 1);
    load(prefix + "o", {kHidden}, 6 * 32);
    load(prefix + "ffn_norm", {kHidden}, 1, 1);
    load(prefix + "gate_up", {kFfn, kFfn}, kHidden);
    load(prefix + "down", {kHidden}, kFfn);
  }
  executor->finish(kBlocks);
  return executor;
}

struct Piece {
  const std::vector<int32_t>* tokens;  // the whole sequence
  int first, count;                    // what this step computes
  std::vector<int32_t> blocks;
};

// Runs one step over the pieces and returns token and logprob of every row, scored against the next token of its sequence.
std::vector<std::pair<int32_t, float>> step(Executor& executor, const std::vector<Piece>& pieces) {
  static std::vector<int32_t> ids, positions, slots, starts, contexts, tables, rows, zeros, targets;
  static std::vector<float> hot, ones, none;
  static std::vector<uint64_t> seeds;
  ids.clear(), positions.clear(), slots.clear(), contexts.clear(), tables.clear(), rows.clear(), targets.clear();
  starts.assign(1, 0);
  for (const Piece& piece : pieces) {
    for (int i = piece.first; i < piece.first + piece.count; ++i) {
      rows.push_back(int32_t(ids.size()));
      ids.push_back((*piece.tokens)[size_t(i)]);
      positions.push_back(i);
      slots.push_back(piece.blocks[size_t(i / kBlockTokens)] * kBlockTokens + i % kBlockTokens);
      targets.push_back(i % 2 ? -1 : (*piece.tokens)[size_t(i + 1)]);
    }
    starts.push_back(int32_t(ids.size()));
    contexts.push_back(piece.first + piece.count);
    tables.insert(tables.end(), piece.blocks.begin(), piece.blocks.end());
  }
  size_t count = rows.size();
  zeros.assign(count, 0), hot.assign(count, 0.8f), ones.assign(count, 0.9f), none.assign(count, 0.f);
  seeds.clear();
  for (size_t r = 0; r < count; ++r) seeds.push_back(uint64_t(positions[r]) * 977);
  Plan plan;
  plan.batch = {int(ids.size()), int(contexts.size()), int(count),    ids.data(), positions.data(), slots.data(),
                starts.data(),   contexts.data(),      tables.data(), kWidth,     rows.data()};
  plan.sampling.temperature = hot.data(), plan.sampling.top_p = ones.data(), plan.sampling.min_p = none.data();
  plan.sampling.top_k = zeros.data(), plan.sampling.seed = seeds.data(), plan.sampling.draw = positions.data();
  plan.sampling.top_logprobs = zeros.data(), plan.sampling.target = targets.data();
  long before = allocations.load();
  executor.submit(plan);
  step_allocations = allocations.load() - before;
  StepResult result = executor.collect();
  std::vector<std::pair<int32_t, float>> out;
  for (size_t r = 0; r < count; ++r) {
    require(result.sampled.status[r] == 0, "row ", r, " has status ", result.sampled.status[r]);
    out.emplace_back(result.sampled.token[r], result.sampled.logprob[r]);
  }
  return out;
}

std::vector<int32_t> table_from(int first) {
  std::vector<int32_t> blocks;
  for (int i = 0; i < kWidth; ++i) blocks.push_back((first + i * 3) % kBlocks);
  return blocks;
}

int check_format(const char* label, DType dtype, WeightFormat format) {
  std::mt19937 random(11);
  std::vector<std::vector<int32_t>> texts;
  for (int s = 0; s < 4; ++s) {
    std::vector<int32_t> text;
    for (int i = 0; i <= kLength; ++i) text.push_back(int32_t(random() % kVocab));
    texts.push_back(text);
  }
  auto alone = make_model(dtype, format, 1), crowd = make_model(dtype, format, 3);
  auto expected = step(*alone, {{&texts[0], 0, kLength, table_from(0)}});

  // The same text in uneven chunks among three others of other lengths, then one token at a time.
  std::vector<std::pair<int32_t, float>> got;
  int done = 0;
  for (int chunk : {1, 63, 2, 70, 13, 1, 1, 1, 48, 200}) {
    std::vector<Piece> pieces{{&texts[0], done, chunk, table_from(0)}};
    for (int s = 1; s < 4; ++s)
      pieces.insert(s == 2 ? pieces.begin() : pieces.end(), {&texts[size_t(s)], 0, 5 * s + done % 30, table_from(16 * s)});
    auto results = step(*crowd, pieces);
    int skip = 10 + done % 30;  // rows of text 2, which comes first
    got.insert(got.end(), results.begin() + skip, results.begin() + skip + chunk);
    done += chunk;
  }
  int different = 0;
  for (size_t i = 0; i < expected.size(); ++i)
    different += expected[i].first != got[i].first || std::memcmp(&expected[i].second, &got[i].second, 4) != 0;

  std::vector<Piece> last{{&texts[0], kLength - 1, 1, table_from(0)}, {&texts[1], 40, 9, table_from(16)}};
  long allocated = 0;
  for (int repeat = 0; repeat < 20; ++repeat) {
    step(*crowd, last);
    allocated += step_allocations;
  }
  bool good = different == 0 && allocated == 0;
  std::printf("%-6s %s  rows that differ: %d of %zu; allocations in 20 steps: %ld\n", label, good ? "ok    " : "FAILED",
              different, expected.size(), allocated);
  return good ? 0 : 1;
}

// Block tables of one-token sequences, and what they are found to share.
int check_prefixes() {
  constexpr int kStride = 6;
  const std::vector<std::vector<int32_t>> tables = {{7, 8, 9, 10, 11, 12}, {1, 2, 3, 0, 0, 0},  {7, 8, 9, 20, 0, 0},
                                                    {1, 2, 4, 5, 0, 0},    {30, 0, 0, 0, 0, 0}, {7, 8, 9, 10, 0, 0},
                                                    {7, 8, 9, 0, 0, 0}};
  std::vector<int32_t> contexts = {6 * 64, 3 * 64 - 1, 3 * 64 + 1, 4 * 64, 5, 4 * 64 - 3, 3 * 64}, starts, flat;
  for (int s = 0; s <= 7; ++s) starts.push_back(s);
  for (const auto& table : tables) flat.insert(flat.end(), table.begin(), table.end());
  Batch batch;
  batch.tokens = batch.sequences = 7;
  batch.query_starts = starts.data();
  batch.context_lens = contexts.data();
  batch.block_tables = flat.data();
  batch.block_table_stride = kStride;

  const PrefixGroups all = find_prefix_groups(batch, 1, 4), largest = find_prefix_groups(batch, 1, 1);
  // The last one's own block is its third, so that two are shared by the four that begin with block 7.
  bool good = all.members == std::vector<int32_t>{0, 2, 5, 6, 1, 3} && all.starts == std::vector<int32_t>{0, 4, 6} &&
              all.shared_blocks == std::vector<int32_t>{2, 2, 2, 2, 0, 2, 2} && largest.groups() == 1 &&
              largest.shared_blocks == std::vector<int32_t>{2, 0, 2, 0, 0, 2, 2} &&
              find_prefix_groups(batch, 7, 4).groups() == 0;
  // The last one fills the block that others go on reading.
  good = good && !is_settled(batch);
  contexts[6] = 3 * 64 - 1;
  good = good && is_settled(batch);
  batch.tokens = 8;
  good = good && !is_settled(batch);
  std::printf("shared prefixes %s\n", good ? "ok" : "FAILED");
  return good ? 0 : 1;
}

}  // namespace
}  // namespace oarlock

int main() {
  using namespace oarlock;
  std::printf("decoder_check on %s\n", name_of(selected_isa()));
  int failed = check_format("f32", DType::f32, WeightFormat::f32) + check_format("bf16", DType::bf16, WeightFormat::bf16) +
               check_format("int8", DType::bf16, WeightFormat::int8) + check_format("int4", DType::bf16, WeightFormat::int4) +
               check_format("int4_groups", DType::bf16, WeightFormat::int4_groups);
  failed += check_prefixes();
  return failed == 0 ? 0 : 1;
}
