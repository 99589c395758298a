// Attention over shared blocks, and of every token by itself, against attention of one sequence after the other.
#include <cmath>
#include <string>
#include <vector>

#include "cuda/check.h"
#include "cuda/weights.h"

namespace oarlock::cuda::check {
namespace {

constexpr int kPool = 700, kWidth = 80;

struct Shape {
  int heads, kv_heads, dim;
};

// A step's arrays on the host, and what it takes to put them on the device.
struct Step {
  std::vector<int32_t> positions, slots, starts = {0}, contexts, tables, shared, members, group_starts = {0};

  void add(const std::vector<int32_t>& blocks, int context, int fresh) {
    for (int position = context - fresh; position < context; ++position) {
      positions.push_back(position);
      slots.push_back(blocks[size_t(position / kBlockTokens)] * kBlockTokens + position % kBlockTokens);
    }
    starts.push_back(int(positions.size()));
    contexts.push_back(context);
    shared.push_back(0);
    for (int b = 0; b < kWidth; ++b) tables.push_back(b < int(blocks.size()) ? blocks[size_t(b)] : -1);
  }

  Batch batch(bool grouped) const {
    Batch b;
    b.tokens = int(positions.size());
    b.sequences = int(contexts.size());
    b.positions = to_device(positions);
    b.slots = to_device(slots);
    b.query_starts = to_device(starts);
    b.context_lens = to_device(contexts);
    b.block_tables = to_device(tables);
    b.block_table_stride = kWidth;
    b.settled = b.tokens == b.sequences;
    if (grouped) {
      b.groups = int(group_starts.size()) - 1;
      b.shared_blocks = to_device(shared);
      b.group_members = to_device(members);
      b.group_starts = to_device(group_starts);
    }
    return b;
  }
};

KvLayer random_cache(CudaOps& ops, const Shape& s) {
  const KvLayer cache = ops.make_kv_layer(kPool, s.kv_heads, s.dim);
  const int64_t count = kPool * ops.kv_bytes_per_block(s.kv_heads, s.dim) / 4;
  fill_random(ops.stream(), cache.keys, ops.activation_dtype(), count, 1, 1);
  fill_random(ops.stream(), cache.values, ops.activation_dtype(), count, 1, 2);
  ops.synchronize();
  return cache;
}

std::vector<float> attend(CudaOps& ops, const Shape& s, const KvLayer& cache, const std::vector<float>& qkv,
                          const Batch& batch) {
  const DType type = ops.activation_dtype();
  Tensor input = tensor(qkv, type, batch.tokens, (s.heads + 2 * s.kv_heads) * s.dim),
         out = poisoned(type, batch.tokens, s.heads * s.dim);
  ops.attention(out, input, {s.heads, s.kv_heads, s.dim, 1.f / std::sqrt(float(s.dim)), 0}, cache, batch);
  ops.synchronize();
  return to_host(out);
}

}  // namespace

void check_shared_prefixes(CudaOps& ops, Report& report) {
  for (const Shape& s : {Shape{32, 8, 128}, Shape{14, 2, 64}, Shape{16, 1, 128}, Shape{3, 3, 64}}) {
    if (report.quick && s.heads / s.kv_heads != 7 && s.dim != 128) continue;
    const KvLayer cache = random_cache(ops, s);
    for (int round = 0; round < (report.quick ? 1 : 4); ++round) {
      Step step;
      int free_block = 0;
      auto take = [&](std::vector<int32_t>& blocks, int count) {
        for (int i = 0; i < count; ++i) blocks.push_back(free_block++ * 37 % kPool);
      };
      // Groups of several sizes and lengths, one of them empty, and sequences of no group between them.
      for (int count : {report.quick ? 20 : 40, 0, 3, integer(2, report.quick ? 5 : 20)}) {
        std::vector<int32_t> prefix;
        take(prefix, integer(1, report.quick ? 12 : 50));
        for (int i = 0; i < count; ++i) {
          std::vector<int32_t> blocks = prefix;
          const int own = integer(1, count > 20 ? 2 : 9);
          take(blocks, own);
          step.add(blocks, (int(blocks.size()) - 1) * kBlockTokens + integer(1, kBlockTokens), 1);
          step.shared.back() = int(prefix.size());
          step.members.push_back(int(step.contexts.size()) - 1);
          if (i % 7 == 0) {
            std::vector<int32_t> alone;
            take(alone, 3);
            step.add(alone, integer(1, 3 * kBlockTokens), 1);
          }
        }
        step.group_starts.push_back(int(step.members.size()));
      }
      const int tokens = int(step.positions.size());
      const std::vector<float> qkv = normals(size_t(tokens) * size_t((s.heads + 2 * s.kv_heads) * s.dim), 1);
      const std::vector<float> alone = attend(ops, s, cache, qkv, step.batch(false));
      report.close(attend(ops, s, cache, qkv, step.batch(true)), std::vector<double>(alone.begin(), alone.end()),
                   2 * tolerance(ops.activation_dtype()),
                   "shared prefixes, heads " + std::to_string(s.heads) + "/" + std::to_string(s.kv_heads));
    }
  }
}

void check_each_token(CudaOps& ops, Report& report) {
  const Shape s{14, 2, 64};
  const KvLayer cache = random_cache(ops, s);
  Step together, apart[2];
  std::vector<int32_t> blocks;
  for (int b = 0; b < 30; ++b) blocks.push_back(b * 11 % kPool);
  const int context = report.quick ? 600 : 1900;  // more than one part
  together.add(blocks, context, report.quick ? 20 : 300);
  together.add(blocks, 77, 1);
  const int tokens = int(together.positions.size()), width = (s.heads + 2 * s.kv_heads) * s.dim;
  const std::vector<float> qkv = normals(size_t(tokens) * size_t(width), 1);
  for (int t = 0; t < tokens; ++t) apart[t >= tokens / 2].add(blocks, together.positions[size_t(t)] + 1, 1);
  const std::vector<float> all = attend(ops, s, cache, qkv, together.batch(false));
  std::vector<float> each;
  for (int half = 0; half < 2; ++half) {
    const auto begin = qkv.begin() + half * (tokens / 2) * width;
    const std::vector<float> part = attend(
        ops, s, cache, std::vector<float>(begin, begin + int(apart[half].contexts.size()) * width), apart[half].batch(false));
    each.insert(each.end(), part.begin(), part.end());
  }
  report.expect(all == each, "a prompt's tokens get the bits that each would get as a sequence of one");
}

}  // namespace oarlock::cuda::check
