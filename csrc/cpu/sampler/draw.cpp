#include "cpu/sampler/draw.h"

#include <limits>
#include <numeric>

#include "cpu/sampler/select.h"

namespace oarlock::cpu {
namespace {

// Candidates are gathered from this log-weight on, and lower by a step at a time until they are enough: most rows are peaked.
constexpr float kFirstThreshold = -8, kThresholdStep = 4, kLastThreshold = -40;

// The candidates that the filters keep are those not worse than `worst`; candidates lie in order of id.
int32_t draw_from(const Candidates& candidates, Better better, int32_t worst, double u) {
  double total = 0, before = 0;
  auto kept = [&](int64_t i) { return !better(worst, int32_t(i)); };
  for (int64_t i = 0; i < candidates.count; ++i) total += kept(i) ? double(candidates.weight[i]) : 0;
  int32_t last = worst;
  for (int64_t i = 0; i < candidates.count; ++i) {
    if (!kept(i) || candidates.weight[i] <= 0) continue;
    last = int32_t(i);
    if ((before += double(candidates.weight[i])) > u * total) break;
  }
  return candidates.id[last];
}

}  // namespace

void RowScratch::reserve(int64_t vocab) {
  for (auto* floats : {&logits, &t, &weight}) floats->resize(size_t(vocab));
  for (auto* ids : {&id, &order}) ids->resize(size_t(vocab));
  chunk_sums.resize(size_t((vocab + kScanChunk - 1) / kScanChunk));
  chunk.resize(size_t(kScanChunk));
}

int32_t find_weight(const SamplerScans& scans, const LogWeights& row, double wanted, RowScratch& scratch) {
  double before = 0;
  const int64_t chunks = (row.count + kScanChunk - 1) / kScanChunk;
  int64_t chunk = 0;
  while (chunk + 1 < chunks && before + scratch.chunk_sums[size_t(chunk)] <= wanted)
    before += scratch.chunk_sums[size_t(chunk++)];
  // Rounding may carry `wanted` past the last weight: then the nearest earlier chunk that has any.
  while (chunk > 0 && scratch.chunk_sums[size_t(chunk)] == 0) --chunk;
  int64_t begin = chunk * kScanChunk, end = std::min(row.count, begin + kScanChunk);
  scans.weights(row, begin, end, scratch.chunk.data());
  int64_t last = begin;
  for (int64_t i = begin; i < end; ++i) {
    float weight = scratch.chunk[size_t(i - begin)];
    if (weight > 0) last = i;
    if ((before += double(weight)) > wanted) break;
  }
  return int32_t(last);
}

int32_t draw_from_all(const SamplerScans& scans, const LogWeights& row, double u, RowScratch& scratch) {
  return find_weight(scans, row, u * scans.sum(row, -INFINITY, scratch.chunk_sums.data()), scratch);
}

int32_t draw_filtered(const SamplerScans& scans, const LogWeights& row, const RowSettings& settings, double u, double all,
                      RowScratch& scratch) {
  const float least = least_log_weight(settings);
  const bool by_mass = settings.top_p < 1;
  if (by_mass && settings.top_k == 0 && all < 0) all = scans.sum(row, least, nullptr);
  Candidates candidates{scratch.t.data(), scratch.weight.data(), scratch.id.data(), 0};
  const bool only_min_p = settings.top_k == 0 && !by_mass;
  for (float threshold = only_min_p ? least : kFirstThreshold;; threshold -= kThresholdStep) {
    const float bound = threshold < kLastThreshold || threshold < least ? least : threshold;
    const double needed = double(settings.top_p) * all;
    // The sum is a fast pass, gathering many candidates a slow one.
    if (settings.top_k == 0 && bound != least && scans.sum(row, bound, nullptr) < needed) continue;
    scans.gather(row, bound, candidates);
    if (bound == least || settings.top_k == 0 || candidates.count >= settings.top_k) break;
  }
  int32_t* order = scratch.order.data();
  std::iota(order, order + candidates.count, 0);
  const Better better{candidates.t};
  auto weight = [&](int32_t i) { return double(candidates.weight[i]); };
  int64_t kept = candidates.count;
  if (settings.top_k > 0 && kept > settings.top_k)
    kept = select_prefix(order, kept, better, [](int32_t) { return 1.0; }, double(settings.top_k));
  if (by_mass) {
    double base = all;
    if (settings.top_k > 0) {
      base = 0;
      for (int64_t i = 0; i < kept; ++i) base += weight(order[i]);
    }
    // Some mass is always asked for, so that the best candidate stays.
    const double needed = std::max(double(settings.top_p) * base, std::numeric_limits<double>::min());
    kept = select_prefix(order, kept, better, weight, needed);
  }
  int32_t worst = *std::max_element(order, order + kept, better);
  return draw_from(candidates, better, worst, u);
}

}  // namespace oarlock::cpu
