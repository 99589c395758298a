// Copies to shared memory that go on while threads compute (cp.async), and the walk over a sequence's blocks of keys and
// values that keeps some of them on their way.
#pragma once

#include <cstdint>

#include "cuda/elementwise.h"
#include "cuda/ptx.cuh"

namespace oarlock::cuda::portable {

// Sixteen bytes, aligned, of what is read once: past L1.
__device__ __forceinline__ void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
// Ends a group of this thread's copies.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until this thread's copies have arrived but those of the last `groups` groups.
template <int groups>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// A ring of blocks, each one head's keys and then its values.
template <int D>
struct BlockRing {
  static constexpr int kHalfBytes = D / 64 * kGroupBytes, kStageBytes = 2 * kHalfBytes;
  static constexpr int kStages = 2 * (128 / D), kBytes = kStages * kStageBytes;  // 64 KB: cards of 8.6 and 8.9 have 99
};

// take(block, address) for blocks [first, last), each when it is in shared memory; at(block) is its offset in keys and values,
// in bytes. All threads of the block take part, and the ring is free when it returns.
template <int D, typename At, typename Take>
__device__ __forceinline__ void walk_blocks(uint8_t* ring, const void* keys, const void* values, int first, int last, At&& at,
                                            Take&& take) {
  using R = BlockRing<D>;
  auto load = [&](int block) {
    if (block < last) {
      const int64_t offset = at(block);
      uint8_t* stage = ring + (block - first) % R::kStages * R::kStageBytes;
      for (int i = threadIdx.x * 16; i < R::kHalfBytes; i += blockDim.x * 16) {
        copy16(stage + i, static_cast<const uint8_t*>(keys) + offset + i);
        copy16(stage + R::kHalfBytes + i, static_cast<const uint8_t*>(values) + offset + i);
      }
    }
    commit_copies();
  };
#pragma unroll
  for (int s = 0; s < R::kStages - 1; ++s) load(first + s);
  for (int block = first; block < last; ++block) {
    wait_copies<R::kStages - 2>();
    __syncthreads();  // everybody's part of the block is there, and nobody reads the one before it any more
    load(block + R::kStages - 1);
    take(block, shared_address(ring + (block - first) % R::kStages * R::kStageBytes));
  }
  __syncthreads();
}

}  // namespace oarlock::cuda::portable
