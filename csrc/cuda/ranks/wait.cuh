// How kernels wait for other ranks: by looking at their own device's memory until what a peer writes there has come.
//
// Values are their own signal: a place that nothing has come to yet holds kEmpty, which no value is. A place is emptied again
// in the round after the one that used it, and used again two rounds later; since every round is an exchange with all ranks,
// a peer can't write there before. Rounds are counted on the device, so that a captured graph serves any number of them.
#pragma once

#include <cstdint>

#include "cuda/ranks/channel.h"

namespace oarlock::cuda {

// The bits of -0.0f: as a pair of 16-bit floats (0, -0), which senders turn into (0, 0).
constexpr uint32_t kEmpty = 0x80000000u;

__device__ __forceinline__ void send(uint4* to, uint4 v) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ __forceinline__ void send(uint64_t* to, uint64_t v) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(v) : "memory");
}
__device__ __forceinline__ void send(uint32_t* to, uint32_t v) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
// After everything that this thread has seen.
__device__ __forceinline__ void send_last(uint32_t* to, uint32_t v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

__device__ __forceinline__ uint4 look(const uint4* at) {
  uint4 v;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at)
               : "memory");
  return v;
}
__device__ __forceinline__ uint64_t look(const uint64_t* at) {
  uint64_t v;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(at) : "memory");
  return v;
}
__device__ __forceinline__ uint32_t look(const uint32_t* at) {
  uint32_t v;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}
__device__ __forceinline__ uint32_t look_first(const uint32_t* at) {
  uint32_t v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}

__device__ __forceinline__ bool has_come(uint4 v) { return v.x != kEmpty && v.y != kEmpty && v.z != kEmpty && v.w != kEmpty; }

__device__ __forceinline__ uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

// A thread's wait. Costs nothing until it has lasted for some microseconds.
class Wait {
 public:
  __device__ Wait(const Channel& channel) : channel_(channel) {}

  // After a look that was in vain, at what rank `of` writes. True: nobody should wait any longer, and what has not come is
  // of no use.
  __device__ bool is_over(int of) {
    if (++looks_ % 64 != 0) return false;
    if (*static_cast<volatile int*>(channel_.failed) != 0) return true;
    if (looks_ % 1024 != 0) return false;  // the host's memory is far
    const uint64_t now = nanoseconds();
    if (begin_ == 0) begin_ = now;
    volatile WaitControl* control = channel_.control;
    const bool aborted = control->aborted != 0;
    if (!aborted && now - begin_ < control->limit) return false;
    if (atomicExch(channel_.failed, 1) == 0 && !aborted) control->late = of + 1;
    __threadfence_system();
    return true;
  }

 private:
  const Channel& channel_;
  uint64_t begin_ = 0;
  uint32_t looks_ = 0;
};

// Rounds are counted to a multiple of three, so that the places take their turns across the end.
constexpr uint32_t kRounds = 3u << 30;

// The round that this kernel is. Only after depend().
__device__ __forceinline__ uint32_t round_of(const Channel& channel) {
  return *static_cast<volatile uint32_t*>(&channel.rounds->number);
}
// What the round before used of a place, in the unit of begin_round.
__device__ __forceinline__ uint32_t used_before(const Channel& channel, uint32_t round) {
  return *static_cast<volatile uint32_t*>(&channel.rounds->used[(round + 2) % 3]);
}
// One value of a share of a sum, at element `at`, to all peers. A kernel that sends shares opens no round: the one does that
// adds them up.
__device__ __forceinline__ void send_share(const Channel& channel, uint32_t round, int64_t at, float x) {
  const uint32_t bits = __float_as_uint(x + 0.f);  // no -0 travels
#pragma unroll 1
  for (int p = 0; p < channel.world - 1; ++p) {
    send(reinterpret_cast<uint32_t*>(channel.at(p + int(p >= channel.rank), round)) + at, bits);
  }
}

// By one thread of each of `blocks` blocks, once its block has read the above: the last one opens the next round.
__device__ __forceinline__ void end_round(const Channel& channel, uint32_t round, uint32_t blocks, uint32_t used) {
  if (blocks > 1) {
    if (atomicAdd(&channel.rounds->arrived, 1u) != blocks - 1) return;
    channel.rounds->arrived = 0;
  }
  channel.rounds->used[round % 3] = used;
  channel.rounds->number = round + 1 == kRounds ? 0 : round + 1;
}

}  // namespace oarlock::cuda
