// Where a step's plan lies on a CUDA device, and how it gets there: written to pinned memory, then copied on the stream.
//
// The addresses of a plan's arrays follow from its sizes alone, so that a graph captured for a shape serves every plan of
// that shape.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "model/plan.h"
#include "model/shared_prefixes.h"

namespace oarlock {

// The sizes that a step is laid out for: at least the plan's own. What is beyond them is padding that writes nothing.
struct StepShape {
  int tokens = 0, sequences = 0, rows = 0;
  int stride = 0;  // of the block tables
  bool history = false, bias = false, masks = false;
  bool settled = false;
  int groups = 0;
  bool plain = false;  // of a split model: Batch::all_plain

  bool operator<(const StepShape& other) const;
};

// A plan in device memory.
struct DeviceStep {
  Batch batch;
  Sampling sampling;
  int32_t* token_ids = nullptr;            // the batch's, where those that the step before draws are still to be put
  const int32_t* token_sources = nullptr;  // [tokens] their rows there; -1: the token is known
};

// Memory on the device and, pinned, on the host, once for each step that may be on its way.
class Staging {
 public:
  static constexpr int kSlots = 2;

  Staging() = default;
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Makes room for `bytes`, at least doubling what there is; nothing may be on its way. Returns whether memory moved.
  bool reserve(size_t bytes);
  uint8_t* host(int slot) const { return host_[slot]; }
  uint8_t* device() const { return device_; }
  size_t bytes() const { return bytes_; }

 private:
  void release();
  uint8_t *host_[kSlots] = {}, *device_ = nullptr;
  size_t bytes_ = 0;
};

class StepBuffers {
 public:
  // Reserves what the largest step needs, without penalties, bias and masks, whose buffers grow when they are first used.
  void allocate(const ModelConfig& config, const Limits& limits);

  // Whether the plan's penalties, bias and masks fit. Otherwise grow, with nothing on its way, makes room for them, and
  // graphs captured before are void.
  bool fits(const Plan& plan) const;
  void grow(const Plan& plan);

  // Writes the plan and what its sequences share, padded to `shape`, to a slot of pinned memory, and enqueues its way to the
  // device.
  DeviceStep send(cudaStream_t stream, int slot, const Plan& plan, const PrefixGroups& groups, const StepShape& shape);

 private:
  int words_ = 0;  // of a mask
  Staging base_, history_, bias_, masks_;
};

}  // namespace oarlock
