// Attention of sequences that bring one token. An item of work is one sequence, one KV head and one part of its context; the
// query heads of the KV head's group are the rows of the matrix instruction, so keys and values are read once for all of them.
// A producer warp keeps blocks of keys and values in flight through a ring in shared memory, across the borders of items and
// ahead of the kernel before this one (all but a sequence's last block were written in earlier steps). Eight warps compute:
// each takes 16 of a block's 64 keys, the first four the even blocks of an item and the others the odd ones, with a running
// maximum, sum and output of its own; these are merged once an item.
#include "base/error.h"
#include "cuda/attention.h"
#include "cuda/attention_items.cuh"
#include "cuda/element.cuh"
#include "cuda/elementwise.h"
#include "cuda/ptx.cuh"

namespace oarlock::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32;

struct DecodeParams {
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

template <int D, bool wide>
struct DecodeShared {
  static constexpr int kHalfBytes = D / 64 * kGroupBytes, kStageBytes = 2 * kHalfBytes;  // keys, then values
  static constexpr int kStages = (wide ? 4 : 6) * (128 / D);
  // Per warp and head of the group: the output, then maximum and sum.
  static constexpr int kMergeStride = D + 4;
  static size_t bytes(int group, int queries) {
    return 1024 + kStages * kStageBytes + size_t(kWarps * group * kMergeStride + queries + 1) * 4;
  }
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
__device__ __forceinline__ Query query_of(const DecodeParams& p, int query) {
  if (p.positions != nullptr) {
    const int token = p.first_token + query;
    return {p.slots[token] < 0 ? 0 : p.positions[token] + 1, 0};
  }
  if (p.query_starts[query + 1] - p.query_starts[query] != 1) return {0, 0};
  return {p.context_lens[query], p.shared_blocks != nullptr ? p.shared_blocks[query] : 0};
}
__device__ __forceinline__ int own_splits(const DecodeParams& p, const Query& query) {
  return splits_of(block_count(query.context, p.window) - query.shared, p.split_blocks,
                   query.shared > 0 ? kMaxSplits / 2 : kMaxSplits);
}
__device__ __forceinline__ int items_of(const DecodeParams& p, int query) {
  const Query q = query_of(p, query);
  return q.context <= 0 ? 0 : own_splits(p, q) * p.kv_heads;
}

// splits: of the blocks that are not shared, whose parts come after the `before` of the shared ones.
struct Item {
  int query, kv_head, split, splits, before, first, last, context;
};

__device__ __forceinline__ Item find_item(const DecodeParams& p, const int* starts, int index) {
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

// Scores of this warp's 16 keys, then output += probabilities * values, for the group's rows (8 to 15 only when wide).
template <typename T, int D, bool wide>
__device__ __forceinline__ void take_block(const DecodeParams& p, const uint32_t (&q)[D / 16][4], float (&out)[D / 8][4],
                                           float (&maximum)[2], float (&sum)[2], uint32_t at, int first_key, int context,
                                           int lane) {
  using S = DecodeShared<D, wide>;
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
  const uint32_t weights[4] = {pack2<T>(score[0][0], score[0][1]), wide ? pack2<T>(score[0][2], score[0][3]) : 0u,
                               pack2<T>(score[1][0], score[1][1]), wide ? pack2<T>(score[1][2], score[1][3]) : 0u};
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {
    uint32_t v[4];
    const int column = j * 16 + matrix / 2 * 8;
    load_matrices_transposed(
        v, at + S::kHalfBytes + column / 64 * kGroupBytes + swizzled(quarter + matrix % 2 * 8 + in_matrix, column % 64 * 2));
    mma<T>(out[j * 2], weights, v[0], v[1]);
    mma<T>(out[j * 2 + 1], weights, v[2], v[3]);
  }
}

template <typename T, int D, bool wide>
__global__ void __launch_bounds__(kThreads + 32, 1) decode_kernel(const DecodeParams p) {
  using S = DecodeShared<D, wide>;
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[S::kStages], empty[S::kStages];
  __shared__ int is_last_part;
  uint8_t* ring = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared) + 1023) & ~uintptr_t(1023));
  float* merge = reinterpret_cast<float*>(ring + S::kStages * S::kStageBytes);
  const int group = p.heads / p.kv_heads;
  int* starts = reinterpret_cast<int*>(merge + kWarps * group * S::kMergeStride);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  if (threadIdx.x == 0) {
    for (int s = 0; s < S::kStages; ++s) {
      barrier_init(&full[s], 1);
      barrier_init(&empty[s], kWarps / 2 * 32 + kWarps / 2);  // the readers' threads, one of each other warp
    }
    barrier_init_fence();
  }
  sum_items(starts, p.queries, [&](int query) { return items_of(p, query); });
  release_successor();
  const int items = starts[p.queries];

  if (warp == kWarps) {
    if (lane != 0) return;
    int stage = 0, phase = 1;  // a fresh ring is empty: the first waits pass
    bool may_read_all = !p.settled;
    if (may_read_all) depend();
    for (int index = blockIdx.x; index < items; index += gridDim.x) {
      const Item item = find_item(p, starts, index);
      const int sequence =
          p.positions != nullptr ? find_sequence(p.query_starts, p.sequences, p.first_token + item.query) : item.query;
      const int32_t* table = p.block_tables + int64_t(sequence) * p.table_stride;
      for (int block = item.first; block < item.last; ++block) {
        if (!may_read_all && (block + 1) * kBlockTokens >= item.context) {
          depend();
          may_read_all = true;
        }
        const int64_t at = (int64_t(table[block]) * p.kv_heads + item.kv_head) * S::kHalfBytes;
        barrier_wait(&empty[stage], phase);
        barrier_expect(&full[stage], S::kStageBytes);
        bulk_load(ring + stage * S::kStageBytes, static_cast<const uint8_t*>(p.keys) + at, S::kHalfBytes, &full[stage]);
        bulk_load(ring + stage * S::kStageBytes + S::kHalfBytes, static_cast<const uint8_t*>(p.values) + at, S::kHalfBytes,
                  &full[stage]);
        if (++stage == S::kStages) stage = 0, phase ^= 1;
      }
    }
    depend();
    return;
  }

  depend();
  int stage = 0, phase = 0;
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Item item = find_item(p, starts, index);
    const int64_t token = p.positions != nullptr ? p.first_token + item.query : p.query_starts[item.query];
    // Rows of the first operand are the group's heads; those beyond it are zero.
    uint32_t q[D / 16][4];
#pragma unroll
    for (int i = 0; i < D / 16 * 4; ++i) {
      const int row = lane / 4 + i % 2 * 8, column = i / 4 * 16 + i / 2 % 2 * 8 + lane % 4 * 2;
      q[i / 4][i % 4] = 0;
      if ((wide || i % 2 == 0) && row < group) {
        q[i / 4][i % 4] = *reinterpret_cast<const uint32_t*>(static_cast<const T*>(p.q) + token * p.q_stride +
                                                             (item.kv_head * group + row) * D + column);
      }
    }
    float out[D / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int block = item.first; block < item.last; ++block) {
      // Every warp sees every block arrive, or it could take one turn of the ring's barriers for another.
      barrier_wait(&full[stage], phase);
      const bool mine = (block - item.first) % 2 == warp / 4;
      if (mine) {
        take_block<T, D, wide>(p, q, out, maximum, sum, shared_address(ring + stage * S::kStageBytes),
                               block * kBlockTokens + warp % 4 * 16, item.context, lane);
      }
      if (mine || lane == 0) barrier_arrive(&empty[stage]);
      if (++stage == S::kStages) stage = 0, phase ^= 1;
    }

    // Merge the eight warps' states.
#pragma unroll
    for (int r = 0; r < (wide ? 2 : 1); ++r) {
      sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
      sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
      const int row = lane / 4 + r * 8;
      if (row >= group) continue;
      float* mine = merge + (warp * group + row) * S::kMergeStride;
      if (lane % 4 == 0) mine[D] = maximum[r], mine[D + 1] = sum[r];
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        *reinterpret_cast<float2*>(mine + j * 8 + lane % 4 * 2) = make_float2(out[j][r * 2], out[j][r * 2 + 1]);
      }
    }
    named_barrier<1>(kThreads);
    T* to = static_cast<T*>(p.out) + token * p.out_stride + item.kv_head * group * D;
    const int64_t state = int64_t(item.query) * p.kv_heads + item.kv_head;
    float* parts = part_of(p.partials, item.query, item.kv_head, 0, 0, p.kv_heads, group, D);
    const int part_count = item.before + item.splits;
    for (int i = threadIdx.x; i < group * D; i += kThreads) {
      const int row = i / D, column = i % D;
      float top = -INFINITY, total = 0, value = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) top = fmaxf(top, merge[(w * group + row) * S::kMergeStride + D]);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float* theirs = merge + (w * group + row) * S::kMergeStride;
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
      named_barrier<1>(kThreads);
      if (threadIdx.x == 0) {
        is_last_part = atomicAdd(p.counters + state, 1) == item.splits - 1;
        if (is_last_part) p.counters[state] = 0;
      }
      named_barrier<1>(kThreads);
      if (is_last_part) {
        __threadfence();
        for (int i = threadIdx.x; i < group * D; i += kThreads) {
          const float* part = parts + i / D * (D + 2);
          const int stride = group * (D + 2);
          float top = -INFINITY, total = 0, value = 0;
          for (int s = 0; s < part_count; ++s) top = fmaxf(top, __ldcg(part + s * stride + D));
          for (int s = 0; s < part_count; ++s) {
            const float weight = exp2f(__ldcg(part + s * stride + D) - top);
            total += weight * __ldcg(part + s * stride + D + 1);
            value += weight * __ldcg(part + s * stride + i % D);
          }
          to[i] = from_float<T>(value / total);
        }
      }
    }
    named_barrier<1>(kThreads);  // the merge buffer is free again
  }
}

template <typename T, int D, bool wide>
void go(cudaStream_t stream, const Device& device, const DecodeParams& p) {
  const size_t bytes = DecodeShared<D, wide>::bytes(p.heads / p.kv_heads, p.queries);
  static size_t allowed = 0;
  if (bytes > allowed) {
    require(bytes <= device.shared_per_block, "attention over groups of ", p.heads / p.kv_heads, " heads and ", p.queries,
            " queries needs ", bytes, " bytes of shared memory, and a block has ", device.shared_per_block);
    allow_shared(decode_kernel<T, D, wide>, bytes);
    allowed = bytes;
  }
  launch(stream, decode_kernel<T, D, wide>, dim3(unsigned(device.multiprocessors)), kThreads + 32, bytes, p);
}

template <typename T>
void by_shape(cudaStream_t stream, const Device& device, const DecodeParams& p, int head_dim) {
  const bool wide = p.heads / p.kv_heads > 8;
  if (head_dim == 64) return wide ? go<T, 64, true>(stream, device, p) : go<T, 64, false>(stream, device, p);
  if (head_dim == 128) return wide ? go<T, 128, true>(stream, device, p) : go<T, 128, false>(stream, device, p);
  throw InvalidArgument(concat("heads of ", head_dim, " elements have no CUDA kernel; 64 and 128 have"));
}

DecodeParams params_of(const AttentionWorkspace& workspace, Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache,
                       const Batch& batch) {
  require(shape.heads % shape.kv_heads == 0 && shape.heads / shape.kv_heads <= 16,
          "attention takes groups of up to 16 query heads, not ", shape.heads, " over ", shape.kv_heads);
  require(batch.sequences <= workspace.max_sequences, "a step of ", batch.sequences, " sequences exceeds the ",
          workspace.max_sequences, " reserved for");
  DecodeParams p = {};
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

void launch_decode(cudaStream_t stream, const Device& device, const DecodeParams& p, DType type, int head_dim) {
  if (type == DType::bf16) return by_shape<__nv_bfloat16>(stream, device, p, head_dim);
  by_shape<__half>(stream, device, p, head_dim);
}

}  // namespace

void attend_decode(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor out, Tensor qkv,
                   const AttentionShape& shape, KvLayer cache, const Batch& batch, bool batch_invariant) {
  DecodeParams p = params_of(workspace, out, qkv, shape, cache, batch);
  p.settled = batch.settled;
  const int items = batch.sequences * shape.kv_heads;
  if (!batch_invariant && items >= 3 * device.multiprocessors) p.split_blocks = 8 * kSplitBlocks;
  if (batch.groups > 0) p.shared_blocks = batch.shared_blocks;
  launch_decode(stream, device, p, qkv.dtype, shape.head_dim);
}

void attend_each(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor out, Tensor qkv,
                 const AttentionShape& shape, KvLayer cache, const Batch& batch) {
  DecodeParams p = params_of(workspace, out, qkv, shape, cache, batch);
  p.positions = batch.positions;
  p.slots = batch.slots;
  for (int first = 0; first < batch.tokens; first += workspace.max_sequences) {
    p.first_token = first;
    p.queries = batch.tokens - first < workspace.max_sequences ? batch.tokens - first : workspace.max_sequences;
    launch_decode(stream, device, p, qkv.dtype, shape.head_dim);
  }
}

}  // namespace oarlock::cuda
