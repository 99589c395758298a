// One step's plan in host memory, checked before any kernel reads it: nothing that arrives here may read or write outside
// the model's buffers.
#pragma once

#include "base/ops.h"
#include "model/config.h"

namespace oarlock {

// The sizes of what a plan's pointers point to, and which optional groups are there.
struct Plan {
  Batch batch;
  Sampling sampling;
  int history_entries = 0, bias_entries = 0, masks = 0;
};

// InvalidArgument, naming the field, when the plan is inconsistent or exceeds the limits. blocks: size of the KV pool.
void check(const Plan& plan, const ModelConfig& config, const Limits& limits, int64_t blocks);

}  // namespace oarlock
