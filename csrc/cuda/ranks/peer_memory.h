// Device memory that the ranks of one host write into each other's, over NVLink or PCIe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/comm.h"

namespace oarlock::cuda {

class PeerMemory {
 public:
  // Every rank calls this alike, on its own device, with as many bytes of its own as the others are to reach. Fails on no rank
  // or on all: when some can't reach the others (another host, another container, cards without peer access), reached() is
  // false everywhere and there is no memory.
  PeerMemory(Comm& comm, size_t bytes);
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  bool reached() const { return !of_.empty(); }
  // The memory of a rank, this one's own too, at this process's address.
  uint8_t* of(int rank) const { return of_[size_t(rank)]; }

 private:
  void close();

  const int rank_;
  uint8_t* own_ = nullptr;
  std::vector<uint8_t*> of_;
};

}  // namespace oarlock::cuda
