// What one row of Sampling asks for, with neutral values where an array is absent; shared by the sampler and its reference.
#pragma once

#include <cstdint>

#include "base/ops.h"

namespace oarlock::cpu {

constexpr float kLeastTemperature = 1e-5f;

struct RowSettings {
  float temperature, top_p, min_p;
  int32_t top_k;  // 0 = off
  float repetition, presence, frequency;
  uint64_t seed;
  int32_t draw, top_logprobs, target;
  int32_t history_begin, history_end, bias_begin, bias_end;
  const uint32_t* mask;  // null = all allowed

  bool edits_logits() const {
    bool penalties = history_begin < history_end && (repetition != 1 || presence != 0 || frequency != 0);
    return penalties || bias_begin < bias_end || mask != nullptr;
  }
};

inline RowSettings row_settings(const Sampling& s, int row, int64_t vocab) {
  auto at = [row](auto* values, auto neutral) { return values != nullptr ? values[row] : decltype(neutral)(neutral); };
  RowSettings out;
  out.temperature = at(s.temperature, 0.0f);
  out.top_p = at(s.top_p, 1.0f);
  out.min_p = at(s.min_p, 0.0f);
  int32_t top_k = at(s.top_k, int32_t(0));
  out.top_k = top_k < 0 || top_k >= vocab ? 0 : top_k;
  out.repetition = at(s.repetition_penalty, 1.0f);
  out.presence = at(s.presence_penalty, 0.0f);
  out.frequency = at(s.frequency_penalty, 0.0f);
  out.seed = at(s.seed, uint64_t(0));
  out.draw = at(s.draw, int32_t(0));
  out.top_logprobs = at(s.top_logprobs, int32_t(-1));
  out.target = at(s.target, int32_t(-1));
  out.history_begin = at(s.history_starts, int32_t(0));
  out.history_end = s.history_starts != nullptr ? s.history_starts[row + 1] : 0;
  out.bias_begin = at(s.bias_starts, int32_t(0));
  out.bias_end = s.bias_starts != nullptr ? s.bias_starts[row + 1] : 0;
  int32_t mask_row = s.masks != nullptr ? at(s.mask_rows, int32_t(-1)) : -1;
  out.mask = mask_row < 0 ? nullptr : s.masks + mask_row * ((vocab + 31) / 32);
  return out;
}

// Penalties, bias and mask on a copy of the logits.
void edit_logits(float* logits, int64_t vocab, const RowSettings& row, const Sampling& sampling);

}  // namespace oarlock::cpu
