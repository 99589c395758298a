// What one row of Sampling asks for, its random number, and the order of logits: the device's side of the CPU sampler's rules.
#pragma once

#include <cstdint>

#include "base/ops.h"

namespace oarlock::cuda {

constexpr float kLeastTemperature = 1e-5f;

// Keys order like the numbers they stand for; -0 counts as 0.
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x + 0.f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

struct RowSettings {
  float temperature, top_p, min_p;
  int top_k;  // 0 = off
  float repetition, presence, frequency;
  uint64_t seed;
  int draw, top_logprobs, target;
  int history_begin, history_end, bias_begin, bias_end;
  const uint32_t* mask;  // null = all allowed

  __device__ bool edits_logits() const {
    const bool penalties = history_begin < history_end && (repetition != 1 || presence != 0 || frequency != 0);
    return penalties || bias_begin < bias_end || mask != nullptr;
  }
  // Greedy, and neither edits nor log-probabilities are asked for.
  __device__ bool only_best() const {
    return temperature < kLeastTemperature && target < 0 && top_logprobs < 0 && !edits_logits();
  }
};

template <typename T>
__device__ __forceinline__ T value_or(const T* values, int row, T neutral) {
  return values != nullptr ? values[row] : neutral;
}

__device__ __forceinline__ RowSettings row_settings(const Sampling& s, int row, int vocab) {
  RowSettings out;
  out.temperature = value_or(s.temperature, row, 0.f);
  out.top_p = value_or(s.top_p, row, 1.f);
  out.min_p = value_or(s.min_p, row, 0.f);
  const int top_k = value_or(s.top_k, row, 0);
  out.top_k = top_k < 0 || top_k >= vocab ? 0 : top_k;
  out.repetition = value_or(s.repetition_penalty, row, 1.f);
  out.presence = value_or(s.presence_penalty, row, 0.f);
  out.frequency = value_or(s.frequency_penalty, row, 0.f);
  out.seed = value_or(s.seed, row, uint64_t(0));
  out.draw = value_or(s.draw, row, 0);
  out.top_logprobs = value_or(s.top_logprobs, row, -1);
  out.target = value_or(s.target, row, -1);
  out.history_begin = value_or(s.history_starts, row, 0);
  out.history_end = value_or(s.history_starts, row + 1, 0);
  out.bias_begin = value_or(s.bias_starts, row, 0);
  out.bias_end = value_or(s.bias_starts, row + 1, 0);
  const int mask_row = s.masks != nullptr ? value_or(s.mask_rows, row, -1) : -1;
  out.mask = mask_row < 0 ? nullptr : s.masks + int64_t(mask_row) * ((vocab + 31) / 32);
  return out;
}

// Penalties and bias on logits [begin, end), by all threads of a block; values[begin] is the first.
__device__ __forceinline__ void edit_slice(float* values, int begin, int end, const RowSettings& row, const Sampling& s) {
  for (int i = row.history_begin + int(threadIdx.x); i < row.history_end; i += blockDim.x) {
    const int id = s.history_ids[i], count = s.history_counts[i];
    if (id < begin || id >= end) continue;
    float x = values[id];
    x = x > 0 ? x / row.repetition : x * row.repetition;
    if (count > 0) x -= row.frequency * float(count) + row.presence;
    values[id] = x;
  }
  __syncthreads();
  for (int i = row.bias_begin + int(threadIdx.x); i < row.bias_end; i += blockDim.x) {
    const int id = s.bias_ids[i];
    if (id >= begin && id < end) atomicAdd(values + id, s.bias_values[i]);
  }
  __syncthreads();
}

// 53 random bits of Philox4x32-10 with key `seed` and counter (draw, 0, 0, 0).
__device__ __forceinline__ uint64_t random_bits(uint64_t seed, int draw) {
  uint32_t x[4] = {uint32_t(draw), 0, 0, 0}, k[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * x[0], b = uint64_t(0xCD9E8D57u) * x[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ x[1] ^ k[0], uint32_t(b), uint32_t(a >> 32) ^ x[3] ^ k[1], uint32_t(a)};
    for (int i = 0; i < 4; ++i) x[i] = next[i];
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return (uint64_t(x[1]) << 32 | x[0]) >> 11;
}

// The least mass that is no less than the share top_p of total, and at least 1.
__device__ __forceinline__ uint64_t share_of(uint64_t total, float top_p) {
  const uint64_t wanted = uint64_t(ceil(double(total) * double(top_p)));
  return wanted < 1 ? 1 : wanted < total ? wanted : total;
}

}  // namespace oarlock::cuda
