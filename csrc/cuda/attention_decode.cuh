// What decode attention is on every card: the parts that contexts are cut into, the arithmetic of a warp, and the merging of
// warps and parts. attention_decode.cu and portable/attention_decode.cu bring blocks to shared memory, each in its way.
#pragma once

#include "base/error.h"
#include "cuda/attention.h"
#include "cuda/attention_items.cuh"
#include "cuda/element.cuh"
#include "cuda/elementwise.h"
#include "cuda/ptx.cuh"

namespace oarlock::cuda::decode {

struct Params {
  void* out;
  const void *q, *keys, *values;
  const int32_t *query_starts, *context_lens, *block_tables;
  const int32_t *positions, *slots;  // of every token, where each is a query; else null, and each sequence is one
  const int32_t* shared_blocks;      // [sequences] blocks that attend_shared has seen to, or null
  float* partials;
  int* counters;
  int64_t q_stride, out_stride;
  int queries, sequences, first_token, table_stride, heads, kv_heads, window, split_blocks;
  bool settled;
  float scale;  // times log2(e)
};

// Blocks that a query at the end of the context sees.
__device__ __forceinline__ int first_block(int context, int window) {
  return window > 0 && context > window ? (context - window) / kBlockTokens : 0;
}
__device__ __forceinline__ int block_count(int context, int window) {
  return (context + kBlockTokens - 1) / kBlockTokens - first_block(context, window);
}

// A query's context, 0 where it is none of ours or padding, and the leading blocks of it that are seen to.
struct Query {
  int context, shared;
};
__device__ __forceinline__ Query query_of(const Params& p, int query) {
  if (p.positions != nullptr) {
    const int token = p.first_token + query;
    return {p.slots[token] < 0 ? 0 : p.positions[token] + 1, 0};
  }
  if (p.query_starts[query + 1] - p.query_starts[query] != 1) return {0, 0};
  return {p.context_lens[query], p.shared_blocks != nullptr ? p.shared_blocks[query] : 0};
}
__device__ __forceinline__ int own_splits(const Params& p, const Query& query) {
  return splits_of(block_count(query.context, p.window) - query.shared, p.split_blocks,
                   query.shared > 0 ? kMaxSplits / 2 : kMaxSplits);
}
__device__ __forceinline__ int items_of(const Params& p, int query) {
  const Query q = query_of(p, query);
  return q.context <= 0 ? 0 : own_splits(p, q) * p.kv_heads;
}

// splits: of the blocks that are not shared, whose parts come after the `before` of the shared ones.
struct Item {
  int query, kv_head, split, splits, before, first, last, context;
};

__device__ __forceinline__ Item find_item(const Params& p, const int* starts, int index) {
  Item item;
  item.query = find_sequence(starts, p.queries, index);
  const int within = index - starts[item.query];
  item.kv_head = within % p.kv_heads;
  item.split = within / p.kv_heads;
  const Query query = query_of(p, item.query);
  item.context = query.context;
  const int base = first_block(item.context, p.window) + query.shared;
  const int blocks = block_count(item.context, p.window) - query.shared;
  item.splits = own_splits(p, query);
  item.before = shared_splits(query.shared);
  item.first = base + int(int64_t(blocks) * item.split / item.splits);
  item.last = base + int(int64_t(blocks) * (item.split + 1) / item.splits);
  return item;
}

// The token that an item's query is.
__device__ __forceinline__ int64_t token_of(const Params& p, const Item& item) {
  return p.positions != nullptr ? p.first_token + item.query : p.query_starts[item.query];
}
// The blocks of the sequence that an item's query belongs to.
__device__ __forceinline__ const int32_t* table_of(const Params& p, const Item& item) {
  const int sequence =
      p.positions != nullptr ? find_sequence(p.query_starts, p.sequences, p.first_token + item.query) : item.query;
  return p.block_tables + int64_t(sequence) * p.table_stride;
}

// What a warp has of a query: the group's heads as rows of the matrix instruction (those beyond the group are zero; rows 8 to
// 15 count only when wide), the sum of values so far, and maximum and sum of the weights.
template <typename T, int D, bool wide>
struct State {
  uint32_t q[D / 16][4];
  float out[D / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  State() = default;
  __device__ __forceinline__ State(const Params& p, const Item& item, int lane) {
    const int group = p.heads / p.kv_heads;
    const T* from = static_cast<const T*>(p.q) + token_of(p, item) * p.q_stride + item.kv_head * group * D;
#pragma unroll
    for (int i = 0; i < D / 16 * 4; ++i) {
      const int row = lane / 4 + i % 2 * 8, column = i / 4 * 16 + i / 2 % 2 * 8 + lane % 4 * 2;
      q[i / 4][i % 4] = 0;
      if ((wide || i % 2 == 0) && row < group) q[i / 4][i % 4] = *reinterpret_cast<const uint32_t*>(from + row * D + column);
    }
  }
};

// Scores of 16 keys from first_key on become weights, of the type of the values and as rows of the matrix instruction; what
// is summed so far shrinks to the new maximum.
template <typename T, int D, bool wide>
__device__ __forceinline__ void weigh(const Params& p, State<T, D, wide>& state, float (&score)[2][4], uint32_t (&weights)[4],
                                      int first_key, int context, int lane) {
  auto& [q, out, maximum, sum] = state;
  const int oldest = p.window > 0 ? context - p.window : 0;
  if (first_key + 16 > context || first_key < oldest) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int key = first_key + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (key >= context || key < oldest) score[i / 4][i % 4] = -INFINITY;
    }
  }
#pragma unroll
  for (int r = 0; r < (wide ? 2 : 1); ++r) {
    float top = fmaxf(fmaxf(score[0][r * 2], score[0][r * 2 + 1]), fmaxf(score[1][r * 2], score[1][r * 2 + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * p.scale;
    const float next = fmaxf(maximum[r], top), base = next == -INFINITY ? 0.f : next;
    const float shrink = exp2f(maximum[r] - base);
    maximum[r] = next;
    float added = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& s = score[i / 2][r * 2 + i % 2];
      s = exp2f(s * p.scale - base);
      added += s;
    }
    sum[r] = sum[r] * shrink + added;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) out[j][r * 2] *= shrink, out[j][r * 2 + 1] *= shrink;
  }
  weights[0] = pack2<T>(score[0][0], score[0][1]);
  weights[1] = wide ? pack2<T>(score[0][2], score[0][3]) : 0u;
  weights[2] = pack2<T>(score[1][0], score[1][1]);
  weights[3] = wide ? pack2<T>(score[1][2], score[1][3]) : 0u;
}

// Scores of this warp's 16 keys of the block at shared address `at`, then output += probabilities * values.
template <typename T, int D, bool wide>
__device__ __forceinline__ void take_block(const Params& p, State<T, D, wide>& state, uint32_t at, int first_key, int context,
                                           int lane) {
  auto& [q, out, maximum, sum] = state;
  const int matrix = lane / 8, in_matrix = lane % 8, quarter = first_key % kBlockTokens;
  float score[2][4] = {};
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t k[4];
    const int column = step * 16 + matrix % 2 * 8;
    load_matrices(k, at + column / 64 * kGroupBytes + swizzled(quarter + matrix / 2 * 8 + in_matrix, column % 64 * 2));
    mma<T>(score[0], q[step], k[0], k[1]);
    mma<T>(score[1], q[step], k[2], k[3]);
  }
  uint32_t weights[4];
  weigh(p, state, score, weights, first_key, context, lane);
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {
    uint32_t v[4];
    const int column = j * 16 + matrix / 2 * 8;
    load_matrices_transposed(v, at + D / 64 * kGroupBytes + column / 64 * kGroupBytes +
                                    swizzled(quarter + matrix % 2 * 8 + in_matrix, column % 64 * 2));
    mma<T>(out[j * 2], weights, v[0], v[1]);
    mma<T>(out[j * 2 + 1], weights, v[2], v[3]);
  }
}

// Elements of shared memory that merge_item needs: for each warp and head the sum of values, then maximum and sum of weights.
constexpr int merge_stride(int D) { return D + 4; }

// Merges the states of kWarps warps, all in `barrier`, into the item's result, or into the query's when this is the last of
// its parts to be done. The buffer may be used again after another barrier.
template <typename T, int D, bool wide, int kWarps, typename Barrier>
__device__ __forceinline__ void merge_item(const Params& p, const Item& item, State<T, D, wide>& state, float* merge,
                                           Barrier&& barrier) {
  constexpr int kStride = merge_stride(D);
  __shared__ int is_last_part;
  auto& [q, out, maximum, sum] = state;
  const int group = p.heads / p.kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < (wide ? 2 : 1); ++r) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    const int row = lane / 4 + r * 8;
    if (row >= group) continue;
    float* mine = merge + (warp * group + row) * kStride;
    if (lane % 4 == 0) mine[D] = maximum[r], mine[D + 1] = sum[r];
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      *reinterpret_cast<float2*>(mine + j * 8 + lane % 4 * 2) = make_float2(out[j][r * 2], out[j][r * 2 + 1]);
    }
  }
  barrier();
  T* to = static_cast<T*>(p.out) + token_of(p, item) * p.out_stride + item.kv_head * group * D;
  int* counter = p.counters + int64_t(item.query) * p.kv_heads + item.kv_head;
  float* parts = part_of(p.partials, item.query, item.kv_head, 0, 0, p.kv_heads, group, D);
  const int part_count = item.before + item.splits;
#pragma unroll 1
  for (int i = threadIdx.x; i < group * D; i += kWarps * 32) {
    const int row = i / D, column = i % D;
    float top = -INFINITY, total = 0, value = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, merge[(w * group + row) * kStride + D]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* theirs = merge + (w * group + row) * kStride;
      const float weight = exp2f(theirs[D] - top);
      total += weight * theirs[D + 1];
      value += weight * theirs[column];
    }
    if (part_count == 1) {
      to[i] = from_float<T>(value / total);
    } else {
      float* part = parts + ((item.before + item.split) * group + row) * (D + 2);
      __stcg(part + column, value);
      if (column == 0) __stcg(part + D, top), __stcg(part + D + 1, total);
    }
  }
  if (part_count > 1) {
    // The last part to be done merges all of them, in order.
    __threadfence();
    barrier();
    if (threadIdx.x == 0) {
      is_last_part = atomicAdd(counter, 1) == item.splits - 1;
      if (is_last_part) *counter = 0;
    }
    barrier();
    if (is_last_part) {
      __threadfence();
#pragma unroll 1
      for (int i = threadIdx.x; i < group * D; i += kWarps * 32) {
        const float* part = parts + i / D * (D + 2);
        const int stride = group * (D + 2);
        float top = -INFINITY, total = 0, value = 0;
#pragma unroll 2
        for (int s = 0; s < part_count; ++s) top = fmaxf(top, __ldcg(part + s * stride + D));
#pragma unroll 2
        for (int s = 0; s < part_count; ++s) {
          const float weight = exp2f(__ldcg(part + s * stride + D) - top);
          total += weight * __ldcg(part + s * stride + D + 1);
          value += weight * __ldcg(part + s * stride + i % D);
        }
        to[i] = from_float<T>(value / total);
      }
    }
  }
}

inline Params params_of(const AttentionWorkspace& workspace, Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache,
                        const Batch& batch) {
  require(shape.heads % shape.kv_heads == 0 && shape.heads / shape.kv_heads <= 16,
          "attention takes groups of up to 16 query heads, not ", shape.heads, " over ", shape.kv_heads);
  require(batch.sequences <= workspace.max_sequences, "a step of ", batch.sequences, " sequences exceeds the ",
          workspace.max_sequences, " reserved for");
  Params p = {};
  p.out = out.data;
  p.q = qkv.data;
  p.keys = cache.keys;
  p.values = cache.values;
  p.query_starts = batch.query_starts;
  p.context_lens = batch.context_lens;
  p.block_tables = batch.block_tables;
  p.partials = workspace.partials;
  p.counters = workspace.counters;
  p.q_stride = qkv.stride;
  p.out_stride = out.stride;
  p.queries = p.sequences = batch.sequences;
  p.table_stride = batch.block_table_stride;
  p.heads = shape.heads;
  p.kv_heads = shape.kv_heads;
  p.window = shape.window;
  p.split_blocks = kSplitBlocks;
  p.scale = shape.scale * 1.4426950408889634f;
  return p;
}

// Of attend_decode (attention.h).
inline Params decode_params(const Device& device, const AttentionWorkspace& workspace, Tensor out, Tensor qkv,
                            const AttentionShape& shape, KvLayer cache, const Batch& batch, bool batch_invariant) {
  Params p = params_of(workspace, out, qkv, shape, cache, batch);
  p.settled = batch.settled;
  const int items = batch.sequences * shape.kv_heads;
  if (!batch_invariant && items >= 3 * device.multiprocessors) p.split_blocks = 8 * kSplitBlocks;
  if (batch.groups > 0) p.shared_blocks = batch.shared_blocks;
  return p;
}

// Calls launch(params) for every token by itself, as many at a time as there is room for partial sums.
template <typename Launch>
void launch_each(const AttentionWorkspace& workspace, Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache,
                 const Batch& batch, Launch&& launch) {
  Params p = params_of(workspace, out, qkv, shape, cache, batch);
  p.positions = batch.positions;
  p.slots = batch.slots;
  for (int first = 0; first < batch.tokens; first += workspace.max_sequences) {
    p.first_token = first;
    p.queries = batch.tokens - first < workspace.max_sequences ? batch.tokens - first : workspace.max_sequences;
    launch(p);
  }
}

}  // namespace oarlock::cuda::decode
