// What the bindings drive: a decoder on one device that takes a plan in host memory and gives results in host memory.
#pragma once

#include <memory>
#include <string>

#include "base/comm.h"
#include "model/decoder.h"
#include "model/plan.h"
#include "model/ranks.h"

namespace oarlock {

// Results of one step, in host memory owned by the executor; valid until the next submit or collect.
struct StepResult {
  int rows = 0;
  Sampled sampled;
};

// submit and collect alternate; a device may run several submitted steps behind. One caller at a time. Before the first
// submit, collect gives the arrays that later results lie in.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual Decoder& decoder() = 0;
  virtual void finish(int64_t blocks) = 0;
  // Bytes of device memory that the KV cache may take before finish, the workspace set aside; 0 where it is the host's.
  virtual int64_t free_memory() const = 0;
  // The queue that steps run on, a cudaStream_t, for tests and profilers; null where a device has none.
  virtual void* stream() const { return nullptr; }
  virtual void submit(const Plan& plan) = 0;  // the plan's memory may be reused once this returns
  virtual StepResult collect() = 0;

  // Of a split model. Rank 0 gives every step to the others by submit, and an order beside the steps by this.
  virtual void lead(Order) { throw DeviceError("this device can't run a model that is split over ranks"); }
  // Another rank: waits for rank 0's next order and carries it out. CommError when none comes in time.
  virtual Order follow() { throw DeviceError("this device can't run a model that is split over ranks"); }
  // Seconds of this rank's steps that it spent in exchanges with the others, waiting for them included.
  virtual double exchange_seconds() const { return 0; }
};

// Runs each step to its end inside submit. comm: the ranks of a split model, of which config describes this one's share.
std::unique_ptr<Executor> make_cpu_executor(const ModelConfig& config, const Limits& limits, const float* rotary, DType dtype,
                                            int threads, std::shared_ptr<Comm> comm = nullptr);

#ifdef OARLOCK_CUDA
// Devices that this process sees; 0 without a driver.
int cuda_device_count();

struct CudaOptions {
  DType dtype = DType::bf16;     // or f16: of activations, weights and KV
  bool batch_invariant = false;  // a row's result does not depend on its company; prompts are many times slower
  int device = 0;                // its number among those that this process sees
  std::string nccl_library;      // of a split model: NCCL's file, empty for the system's
  double step_limit = 120;       // seconds; a step that takes longer has come to a device that hangs
  bool graphs = true;            // replay decode steps as CUDA graphs; off: every kernel is launched by itself, same results
};

// Runs up to two steps behind. comm: the ranks of a split model, each with a device of its own. DeviceError when there is no
// device, when memory ends, or when a step does not come to an end.
std::unique_ptr<Executor> make_cuda_executor(const ModelConfig& config, const Limits& limits, const float* rotary,
                                             const CudaOptions& options, std::shared_ptr<Comm> comm = nullptr);
#endif

}  // namespace oarlock
