// What a kernel needs to exchange something with the other ranks through peer memory (see wait.cuh).
#pragma once

#include <cstdint>

namespace oarlock::cuda {

constexpr int kMostPeers = 7;  // beyond these, ranks talk through NCCL

// Host memory that the kernels see.
struct WaitControl {
  uint64_t limit;   // nanoseconds that a kernel may wait for a peer
  int32_t aborted;  // set by the host: nobody shall wait
  int32_t late;     // set by a kernel that gave up: 1 + the rank it waited for
};

// Device memory; of one kind of exchange, whose kernels follow each other.
struct Rounds {
  uint32_t number, arrived, used[3];
};

// Passed to kernels by value. A rank's memory holds three places in turn, each with a part for every other rank; a part's
// number counts the ranks without the receiver.
struct Channel {
  int rank = 0, world = 1;
  int64_t part_bytes = 0;
  uint8_t* own = nullptr;
  uint8_t* theirs[kMostPeers + 1] = {};  // by rank
  Rounds* rounds = nullptr;
  int* failed = nullptr;       // on the device: a wait was given up, so that none of the later ones need last
  uint64_t* cycles = nullptr;  // on the device: that exchanges have taken
  WaitControl* control = nullptr;

#ifdef __CUDACC__
  // Where this rank writes to `peer`, and where what `peer` writes arrives.
  __device__ uint8_t* at(int peer, uint32_t round) const {
    return theirs[peer] + (int64_t(round % 3) * (world - 1) + rank - int(rank > peer)) * part_bytes;
  }
  __device__ uint8_t* from(int peer, uint32_t round) const {
    return own + (int64_t(round % 3) * (world - 1) + peer - int(peer > rank)) * part_bytes;
  }
#endif
  int64_t bytes() const { return 3 * int64_t(world - 1) * part_bytes; }
};

}  // namespace oarlock::cuda
