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
  // [tokens] or null: the row of the step before whose token goes here, or -1 where token_ids has it.
  const int32_t* token_sources = nullptr;
};

// InvalidArgument, naming the field, when the plan is inconsistent or exceeds the limits. blocks: size of the KV pool;
// drawn: rows of the step before, for an executor that can feed its tokens forward.
void check(const Plan& plan, const ModelConfig& config, const Limits& limits, int64_t blocks, int drawn = 0);

}  // namespace oarlock
