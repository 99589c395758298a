// How a persistent attention kernel finds its work: items are counted sequence by sequence on the device.
#pragma once

#include "cuda/attention.h"

namespace oarlock::cuda {

__device__ __forceinline__ int splits_of(int blocks, int each, int most) {
  const int splits = (blocks + each - 1) / each;
  return splits < most ? splits : most;
}
__device__ __forceinline__ int shared_splits(int blocks) { return splits_of(blocks, kSplitBlocks, kMaxSharedSplits); }

// Where the part number `part` of a context leaves its sum of values, then the maximum and the sum of weights.
__device__ __forceinline__ float* part_of(float* partials, int query, int kv_head, int part, int head, int kv_heads, int group,
                                          int head_dim) {
  return partials + ((((int64_t(query) * kv_heads + kv_head) * kMaxSplits + part) * group) + head) * (head_dim + 2);
}

// starts[s] = items of the sequences before s, starts[sequences] = all. Every thread of the block takes part.
template <typename Count>
__device__ void sum_items(int* starts, int sequences, Count&& count) {
  __shared__ int warp_sums[32];
  const int threads = blockDim.x, warps = threads / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int carried = 0;
#pragma unroll 1
  for (int base = 0; base < sequences; base += threads) {
    const int sequence = base + threadIdx.x;
    const int mine = sequence < sequences ? count(sequence) : 0;
    int sum = mine;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int before = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += before;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    int before = carried;
#pragma unroll 1
    for (int w = 0; w < warps; ++w) {
      if (w < warp) before += warp_sums[w];
      carried += warp_sums[w];
    }
    if (sequence < sequences) starts[sequence] = before + sum - mine;
    __syncthreads();
  }
  if (threadIdx.x == 0) starts[sequences] = carried;
  __syncthreads();
}

// The sequence that item `index` belongs to: the last whose items start at or before it.
__device__ __forceinline__ int find_sequence(const int* starts, int sequences, int index) {
  int low = 0, high = sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (starts[middle] <= index) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace oarlock::cuda
