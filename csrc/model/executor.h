// What the bindings drive: a decoder on one device that takes a plan in host memory and gives results in host memory.
#pragma once

#include <memory>

#include "model/decoder.h"
#include "model/plan.h"

namespace oarlock {

// Results of one step, in host memory owned by the executor; valid until the next submit.
struct StepResult {
  int rows = 0;
  Sampled sampled;
};

// submit and collect alternate; a device may run several submitted steps behind. One caller at a time.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual Decoder& decoder() = 0;
  virtual void finish(int64_t blocks) = 0;
  virtual void submit(const Plan& plan) = 0;  // the plan's memory may be reused once this returns
  virtual StepResult collect() = 0;
};

// Runs each step to its end inside submit.
std::unique_ptr<Executor> make_cpu_executor(const ModelConfig& config, const Limits& limits, const float* rotary, DType dtype,
                                            int threads);

}  // namespace oarlock
