// Attention of sequences that bring one token over the blocks that they share: keys and values of a prefix are read once for a
// group, not once for each of its sequences. An item of work is one group, one KV head, up to 128 query rows (a row is a head
// of a sequence) and one part of the shared blocks. A producer warp keeps blocks in flight; each of eight warps has 16 rows
// and looks at every key. What comes out is a part like those of attention_decode.cu, which adds the rest of each context
// and merges.
#include "base/error.h"
#include "cuda/attention.h"
#include "cuda/attention_items.cuh"
#include "cuda/element.cuh"
#include "cuda/elementwise.h"
#include "cuda/ptx.cuh"

namespace oarlock::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32, kRows = kWarps * 16;

struct SharedParams {
  const void *q, *keys, *values;
  const int32_t *query_starts, *shared_blocks, *members, *group_starts, *block_tables;
  float* partials;
  int64_t q_stride;
  int groups, table_stride, heads, kv_heads;
  float scale;  // times log2(e)
};

template <int D>
struct SharedRing {
  static constexpr int kHalfBytes = D / 64 * kGroupBytes, kStageBytes = 2 * kHalfBytes;  // keys, then values
  static constexpr int kStages = 6 * (128 / D);
  static constexpr size_t kBytes = 1024 + kStages * kStageBytes;
};

struct Item {
  int first_member, members, kv_head, split, first, last;
};

// A group's shared blocks and the number of its items.
__device__ __forceinline__ int shared_of(const SharedParams& p, int group) {
  const int first = p.group_starts[group];
  return first < p.group_starts[group + 1] ? p.shared_blocks[p.members[first]] : 0;
}
__device__ __forceinline__ int members_of_item(const SharedParams& p) { return kRows / (p.heads / p.kv_heads); }
__device__ __forceinline__ int items_of(const SharedParams& p, int group) {
  const int members = p.group_starts[group + 1] - p.group_starts[group], each = members_of_item(p);
  return (members + each - 1) / each * p.kv_heads * shared_splits(shared_of(p, group));
}

__device__ __forceinline__ Item find_item(const SharedParams& p, const int* starts, int index) {
  const int group = find_sequence(starts, p.groups, index), each = members_of_item(p), blocks = shared_of(p, group);
  const int splits = shared_splits(blocks);
  int within = index - starts[group];
  Item item;
  // Neighbours read the same blocks, if a group has several tiles of rows.
  const int members = p.group_starts[group + 1] - p.group_starts[group], tiles = (members + each - 1) / each;
  const int tile = within % tiles;
  within /= tiles;
  item.kv_head = within % p.kv_heads;
  item.split = within / p.kv_heads;
  item.first_member = p.group_starts[group] + tile * each;
  item.members = min(each, members - tile * each);
  item.first = int(int64_t(blocks) * item.split / splits);
  item.last = int(int64_t(blocks) * (item.split + 1) / splits);
  return item;
}

template <typename T, int D>
__global__ void __launch_bounds__(kThreads + 32, 1) shared_kernel(const SharedParams p) {
  using S = SharedRing<D>;
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[S::kStages], empty[S::kStages];
  __shared__ int starts[kMaxGroups + 1];
  uint8_t* ring = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared) + 1023) & ~uintptr_t(1023));
  const int group = p.heads / p.kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  if (threadIdx.x == 0) {
    for (int s = 0; s < S::kStages; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], kWarps);
    barrier_init_fence();
  }
  sum_items(starts, p.groups, [&](int g) { return items_of(p, g); });
  release_successor();
  const int items = starts[p.groups];
  depend();

  if (warp == kWarps) {
    if (lane != 0) return;
    int stage = 0, phase = 1;
    for (int index = blockIdx.x; index < items; index += gridDim.x) {
      const Item item = find_item(p, starts, index);
      const int32_t* table = p.block_tables + int64_t(p.members[item.first_member]) * p.table_stride;
      for (int block = item.first; block < item.last; ++block) {
        const int64_t at = (int64_t(table[block]) * p.kv_heads + item.kv_head) * S::kHalfBytes;
        barrier_wait(&empty[stage], phase);
        barrier_expect(&full[stage], S::kStageBytes);
        bulk_load(ring + stage * S::kStageBytes, static_cast<const uint8_t*>(p.keys) + at, S::kHalfBytes, &full[stage]);
        bulk_load(ring + stage * S::kStageBytes + S::kHalfBytes, static_cast<const uint8_t*>(p.values) + at, S::kHalfBytes,
                  &full[stage]);
        if (++stage == S::kStages) stage = 0, phase ^= 1;
      }
    }
    return;
  }

  const int matrix = lane / 8, in_matrix = lane % 8;
  int stage = 0, phase = 0;
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Item item = find_item(p, starts, index);
    // The two rows that this thread has parts of: their sequence, -1 beyond the last, and their head in the group.
    int sequence[2], head[2];
    uint32_t q[D / 16][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp * 16 + lane / 4 + r * 8;
      sequence[r] = row < item.members * group ? p.members[item.first_member + row / group] : -1;
      head[r] = row % group;
      const T* from = nullptr;
      if (sequence[r] >= 0) {
        from = static_cast<const T*>(p.q) + p.query_starts[sequence[r]] * p.q_stride + (item.kv_head * group + head[r]) * D;
      }
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = step * 16 + half * 8 + lane % 4 * 2;
          q[step][r + half * 2] = from != nullptr ? *reinterpret_cast<const uint32_t*>(from + column) : 0;
        }
      }
    }
    float out[D / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int block = item.first; block < item.last; ++block) {
      barrier_wait(&full[stage], phase);
      const uint32_t at = shared_address(ring + stage * S::kStageBytes);
      if (warp * 16 < item.members * group) {
        float score[kBlockTokens / 8][4] = {};
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
          const int column = step * 16 + matrix % 2 * 8;
#pragma unroll
          for (int keys = 0; keys < kBlockTokens / 16; ++keys) {
            uint32_t k[4];
            load_matrices(k,
                          at + column / 64 * kGroupBytes + swizzled(keys * 16 + matrix / 2 * 8 + in_matrix, column % 64 * 2));
            mma<T>(score[keys * 2], q[step], k[0], k[1]);
            mma<T>(score[keys * 2 + 1], q[step], k[2], k[3]);
          }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float top = -INFINITY;
#pragma unroll
          for (int n = 0; n < kBlockTokens / 8; ++n) top = fmaxf(top, fmaxf(score[n][r * 2], score[n][r * 2 + 1]));
          top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
          top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * p.scale;
          const float next = fmaxf(maximum[r], top), base = next == -INFINITY ? 0.f : next;
          const float shrink = exp2f(maximum[r] - base);
          maximum[r] = next;
          float added = 0;
#pragma unroll
          for (int n = 0; n < kBlockTokens / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float& s = score[n][r * 2 + i];
              s = exp2f(s * p.scale - base);
              added += s;
            }
          }
          sum[r] = sum[r] * shrink + added;
#pragma unroll
          for (int j = 0; j < D / 8; ++j) out[j][r * 2] *= shrink, out[j][r * 2 + 1] *= shrink;
        }
#pragma unroll
        for (int keys = 0; keys < kBlockTokens / 16; ++keys) {
          const uint32_t weights[4] = {pack2<T>(score[keys * 2][0], score[keys * 2][1]),
                                       pack2<T>(score[keys * 2][2], score[keys * 2][3]),
                                       pack2<T>(score[keys * 2 + 1][0], score[keys * 2 + 1][1]),
                                       pack2<T>(score[keys * 2 + 1][2], score[keys * 2 + 1][3])};
#pragma unroll
          for (int j = 0; j < D / 16; ++j) {
            uint32_t v[4];
            const int column = j * 16 + matrix / 2 * 8;
            load_matrices_transposed(v, at + S::kHalfBytes + column / 64 * kGroupBytes +
                                            swizzled(keys * 16 + matrix % 2 * 8 + in_matrix, column % 64 * 2));
            mma<T>(out[j * 2], weights, v[0], v[1]);
            mma<T>(out[j * 2 + 1], weights, v[2], v[3]);
          }
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(&empty[stage]);
      if (++stage == S::kStages) stage = 0, phase ^= 1;
    }

#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
      sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
      if (sequence[r] < 0) continue;
      float* part = part_of(p.partials, sequence[r], item.kv_head, item.split, head[r], p.kv_heads, group, D);
      if (lane % 4 == 0) __stcg(reinterpret_cast<float2*>(part + D), make_float2(maximum[r], sum[r]));
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        __stcg(reinterpret_cast<float2*>(part + j * 8 + lane % 4 * 2), make_float2(out[j][r * 2], out[j][r * 2 + 1]));
      }
    }
  }
}

template <typename T, int D>
void go(cudaStream_t stream, const Device& device, const SharedParams& p) {
  static const bool allowed = (allow_shared(shared_kernel<T, D>, SharedRing<D>::kBytes), true);
  (void)allowed;
  launch(stream, shared_kernel<T, D>, dim3(unsigned(device.multiprocessors)), kThreads + 32, SharedRing<D>::kBytes, p);
}

template <typename T>
void by_shape(cudaStream_t stream, const Device& device, const SharedParams& p, int head_dim) {
  if (head_dim == 64) return go<T, 64>(stream, device, p);
  if (head_dim == 128) return go<T, 128>(stream, device, p);
  throw InvalidArgument(concat("heads of ", head_dim, " elements have no CUDA kernel; 64 and 128 have"));
}

}  // namespace

void attend_shared(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor qkv,
                   const AttentionShape& shape, KvLayer cache, const Batch& batch) {
  require(batch.groups <= kMaxGroups, "a step has ", batch.groups, " groups of sequences; at most ", kMaxGroups, " fit");
  require(shape.window == 0, "attention with a window shares no blocks");
  SharedParams p = {};
  p.q = qkv.data;
  p.keys = cache.keys;
  p.values = cache.values;
  p.query_starts = batch.query_starts;
  p.shared_blocks = batch.shared_blocks;
  p.members = batch.group_members;
  p.group_starts = batch.group_starts;
  p.block_tables = batch.block_tables;
  p.partials = workspace.partials;
  p.q_stride = qkv.stride;
  p.groups = batch.groups;
  p.table_stride = batch.block_table_stride;
  p.heads = shape.heads;
  p.kv_heads = shape.kv_heads;
  p.scale = shape.scale * 1.4426950408889634f;
  if (qkv.dtype == DType::bf16) return by_shape<__nv_bfloat16>(stream, device, p, shape.head_dim);
  by_shape<__half>(stream, device, p, shape.head_dim);
}

}  // namespace oarlock::cuda
