// What the sequences of a step's plan have in common: looked at on the host, for devices that read shared blocks once.
#pragma once

#include <cstdint>
#include <vector>

#include "base/ops.h"

namespace oarlock {

// Sequences of one token whose block tables begin alike; the arrays are those of Batch.
struct PrefixGroups {
  std::vector<int32_t> shared_blocks, members, starts;  // [sequences], [those in a group], [groups + 1]
  int groups() const { return starts.empty() ? 0 : int(starts.size()) - 1; }
};

// Groups that spare the reading of at least `least` blocks each, and of these the `most` that spare the most. A block counts
// once it is full. `batch` lies in host memory.
PrefixGroups find_prefix_groups(const Batch& batch, int64_t least, int most);

// Batch::settled of a plan in host memory.
bool is_settled(const Batch& batch);

}  // namespace oarlock
