// What the ranks of one model say to each other: the collectives of a step, behind one interface for every transport.
//
// Every rank makes the same calls in the same order. A sum is taken in the order of ranks, so that all of them hold the same
// bits. No call waits for ever: a peer that is gone, cut off or silent for longer than the time limit ends the call, and
// with it the communicator, by CommError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"

namespace oarlock {

// A peer's fault or silence, or an abort. Becomes ConnectionError in Python. The communicator is of no more use.
struct CommError : DeviceError {
  using DeviceError::DeviceError;
};

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int world() const = 0;

  // values[i] becomes the sum of every rank's values[i].
  virtual void all_reduce(float* values, int64_t count) = 0;
  // `all` receives what each rank gave, rank r's bytes[r] bytes behind those of the ranks before it.
  virtual void all_gather(const void* mine, void* all, const std::vector<size_t>& bytes) = 0;
  // The same, but only rank 0 receives; `all` is not read elsewhere.
  virtual void gather(const void* mine, void* all, const std::vector<size_t>& bytes) = 0;
  // Rank 0's data reach every rank; up to `capacity` bytes, returns how many came. `bytes` counts on rank 0 alone.
  virtual size_t broadcast(void* data, size_t bytes, size_t capacity) = 0;
  // Returns when every rank has come here.
  virtual void barrier() = 0;
  // CommError when a peer is known to be lost, or after an abort. Waits for nothing; for whoever waits for something else.
  virtual void check() = 0;
  // Seconds that a call may wait for a peer.
  virtual double time_limit() const = 0;
  // Seconds that a rank polls for rank 0's broadcast before it sleeps until one comes: for a step that must not be late.
  virtual void set_patience(double seconds) = 0;
  // From any thread: ends a call that waits, and every later one, with `reason`.
  virtual void abort(const std::string& reason) = 0;
};

}  // namespace oarlock
