// Draws a token of one row: by the weights of all, or of those that the filters keep.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/sampler/row.h"
#include "cpu/sampler/scan.h"

namespace oarlock::cpu {

constexpr float kLog2E = 1.44269504088896341f;

struct TokenLogit {
  float logit;
  int32_t id;
};

// One thread's memory.
struct RowScratch {
  std::vector<float> logits, t, weight;
  std::vector<int32_t> id, order;
  std::vector<double> chunk_sums;
  std::vector<float> chunk;
  std::vector<TokenLogit> best;  // of a row that lies in parts

  void reserve(int64_t vocab);
};

inline LogWeights log_weights(const float* x, int64_t count, float largest, float temperature) {
  return {x, count, largest, kLog2E / temperature};
}

inline bool has_filters(const RowSettings& row) { return row.top_k > 0 || row.top_p < 1 || row.min_p > 0; }

// The log-weight that min-p asks for.
inline float least_log_weight(const RowSettings& row) {
  return row.min_p > 0 ? std::min(0.0f, std::log2(row.min_p)) : -INFINITY;
}

// The first token at which the running sum of weights exceeds `wanted`; scratch.chunk_sums hold the sums of row's chunks.
int32_t find_weight(const SamplerScans& scans, const LogWeights& row, double wanted, RowScratch& scratch);

int32_t draw_from_all(const SamplerScans& scans, const LogWeights& row, double u, RowScratch& scratch);

// all: the weight of every token that min-p lets pass, when the row has but the best of them; negative when it has all.
int32_t draw_filtered(const SamplerScans& scans, const LogWeights& row, const RowSettings& settings, double u, double all,
                      RowScratch& scratch);

}  // namespace oarlock::cpu
