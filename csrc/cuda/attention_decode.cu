// Attention of sequences that bring one token. An item of work is one sequence, one KV head and one part of its context; the
// query heads of the KV head's group are the rows of the matrix instruction, so keys and values are read once for all of them.
// A producer warp keeps blocks of keys and values in flight through a ring in shared memory, across the borders of items and
// ahead of the kernel before this one (all but a sequence's last block were written in earlier steps). Eight warps compute:
// each takes 16 of a block's 64 keys, the first four the even blocks of an item and the others the odd ones, with a running
// maximum, sum and output of its own; these are merged once an item.
#include "cuda/attention_decode.cuh"
#include "cuda/attention_few.h"

namespace oarlock::cuda {
namespace {

using namespace decode;

constexpr int kWarps = 8, kThreads = kWarps * 32;

template <int D, bool wide>
struct DecodeShared {
  static constexpr int kHalfBytes = D / 64 * kGroupBytes, kStageBytes = 2 * kHalfBytes;  // keys, then values
  static constexpr int kStages = (wide ? 4 : 6) * (128 / D);
  static size_t bytes(int group, int queries) {
    return 1024 + kStages * kStageBytes + size_t(kWarps * group * merge_stride(D) + queries + 1) * 4;
  }
};

template <typename T, int D, bool wide>
__global__ void __launch_bounds__(kThreads + 32, 1) decode_kernel(const Params p) {
  using S = DecodeShared<D, wide>;
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[S::kStages], empty[S::kStages];
  uint8_t* ring = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared) + 1023) & ~uintptr_t(1023));
  float* merge = reinterpret_cast<float*>(ring + S::kStages * S::kStageBytes);
  const int group = p.heads / p.kv_heads;
  int* starts = reinterpret_cast<int*>(merge + kWarps * group * merge_stride(D));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  if (threadIdx.x == 0) {
#pragma unroll 1
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
#pragma unroll 1
    for (int index = blockIdx.x; index < items; index += gridDim.x) {
      const Item item = find_item(p, starts, index);
      const int32_t* table = table_of(p, item);
#pragma unroll 1
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
  Item item = {};
  State<T, D, wide> state;
  auto begin_item = [&](int index) {
    if (index >= items) return;
    item = find_item(p, starts, index);
    state = State<T, D, wide>(p, item, lane);
  };
  begin_item(blockIdx.x);
#pragma unroll 1
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
#pragma unroll 1
    for (int block = item.first; block < item.last; ++block) {
      // Every warp sees every block arrive, or it could take one turn of the ring's barriers for another.
      barrier_wait(&full[stage], phase);
      const bool mine = (block - item.first) % 2 == warp / 4;
      if (mine) {
        take_block(p, state, shared_address(ring + stage * S::kStageBytes), block * kBlockTokens + warp % 4 * 16, item.context,
                   lane);
      }
      if (mine || lane == 0) barrier_arrive(&empty[stage]);
      if (++stage == S::kStages) stage = 0, phase ^= 1;
    }

    // The next item's queries are on their way while this one is merged.
    const Item done = item;
    State<T, D, wide> ended = state;
    begin_item(index + int(gridDim.x));
    merge_item<T, D, wide, kWarps>(p, done, ended, merge, [] { named_barrier<1>(kThreads); });
    named_barrier<1>(kThreads);  // the merge buffer is free again
  }
}

template <typename T, int D, bool wide>
void go(cudaStream_t stream, const Device& device, const Params& p) {
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
void by_shape(cudaStream_t stream, const Device& device, const Params& p, int head_dim) {
  const bool wide = p.heads / p.kv_heads > 8;
  if (head_dim == 64) return wide ? go<T, 64, true>(stream, device, p) : go<T, 64, false>(stream, device, p);
  if (head_dim == 128) return wide ? go<T, 128, true>(stream, device, p) : go<T, 128, false>(stream, device, p);
  throw InvalidArgument(concat("heads of ", head_dim, " elements have no CUDA kernel; 64 and 128 have"));
}

void launch_decode(cudaStream_t stream, const Device& device, const Params& p, DType type, int head_dim) {
  if (type == DType::bf16) return by_shape<__nv_bfloat16>(stream, device, p, head_dim);
  by_shape<__half>(stream, device, p, head_dim);
}

}  // namespace

void attend_decode(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor out, Tensor qkv,
                   const AttentionShape& shape, KvLayer cache, const Batch& batch, bool batch_invariant) {
  if (!batch_invariant && are_few(shape, batch)) return attend_few(stream, workspace, out, qkv, shape, cache, batch);
  launch_decode(stream, device, decode_params(device, workspace, out, qkv, shape, cache, batch, batch_invariant), qkv.dtype,
                shape.head_dim);
}

void attend_each(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor out, Tensor qkv,
                 const AttentionShape& shape, KvLayer cache, const Batch& batch) {
  launch_each(workspace, out, qkv, shape, cache, batch,
              [&](const Params& p) { launch_decode(stream, device, p, qkv.dtype, shape.head_dim); });
}

}  // namespace oarlock::cuda
