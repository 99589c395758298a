// Penalties, bias and grammar mask of a row.
#include <cmath>

#include "cpu/sampler/row.h"

namespace oarlock::cpu {

void edit_logits(float* logits, int64_t vocab, const RowSettings& row, const Sampling& sampling) {
  for (int32_t i = row.history_begin; i < row.history_end; ++i) {
    int32_t id = sampling.history_ids[i], count = sampling.history_counts[i];
    if (id < 0 || id >= vocab) continue;
    float x = logits[id];
    x = x > 0 ? x / row.repetition : x * row.repetition;
    if (count > 0) x -= row.frequency * float(count) + row.presence;
    logits[id] = x;
  }
  for (int32_t i = row.bias_begin; i < row.bias_end; ++i) {
    int32_t id = sampling.bias_ids[i];
    if (id >= 0 && id < vocab) logits[id] += sampling.bias_values[i];
  }
  if (row.mask == nullptr) return;
  for (int64_t word = 0; word < (vocab + 31) / 32; ++word) {
    uint32_t allowed = row.mask[word];
    if (allowed == 0xffffffffu) continue;
    for (int64_t id = word * 32; id < word * 32 + 32 && id < vocab; ++id) {
      if ((allowed >> (id % 32) & 1) == 0) logits[id] = -INFINITY;
    }
  }
}

}  // namespace oarlock::cpu
