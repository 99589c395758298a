// Draws each row's token: one pass where greedy allows it, otherwise candidates above a threshold that is lowered only when
// they turn out too few, and selection among those.
#include "cpu/sampler/sampler.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "cpu/sampler/philox.h"
#include "cpu/sampler/row.h"
#include "cpu/sampler/scan.h"
#include "cpu/sampler/select.h"

namespace oarlock::cpu {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

// Candidates are gathered from this log-weight on, and lower by a step at a time until they are enough: most rows are peaked.
constexpr float kFirstThreshold = -8, kThresholdStep = 4, kLastThreshold = -40;

}  // namespace

// One thread's memory.
struct RowScratch {
  std::vector<float> logits, t, weight;
  std::vector<int32_t> id, order;
  std::vector<double> chunk_sums;
  std::vector<float> chunk;
};

struct SamplerScratch {
  int64_t vocab = 0, max_rows = 0;
  std::vector<RowScratch> threads;
};

namespace {

int32_t draw_from_all(const SamplerScans& scans, const LogWeights& row, double u, RowScratch& scratch) {
  double total = scans.sum(row, -INFINITY, scratch.chunk_sums.data());
  double wanted = u * total, before = 0;
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

int32_t draw_filtered(const SamplerScans& scans, const LogWeights& row, const RowSettings& settings, double u,
                      RowScratch& scratch) {
  const float least = settings.min_p > 0 ? std::min(0.0f, std::log2(settings.min_p)) : -INFINITY;
  const bool by_mass = settings.top_p < 1;
  const double all = by_mass && settings.top_k == 0 ? scans.sum(row, least, nullptr) : 0;
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

// One row to its place in `sampled`; false when nothing can be drawn.
bool sample_row(const SamplerScans& scans, const float* raw, int64_t vocab, const Sampling& sampling, const Sampled& sampled,
                int row, RowScratch& scratch) {
  const RowSettings settings = row_settings(sampling, row, vocab);
  const Largest best = scans.largest(raw, vocab);
  if (best.nan || !std::isfinite(best.value)) return false;
  int32_t token = settings.target;
  if (token < 0) {
    const float* logits = raw;
    Largest largest = best;
    if (settings.edits_logits()) {
      std::memcpy(scratch.logits.data(), raw, size_t(vocab) * 4);
      edit_logits(scratch.logits.data(), vocab, settings, sampling);
      logits = scratch.logits.data();
      largest = scans.largest(logits, vocab);
      if (largest.nan || !std::isfinite(largest.value)) return false;
    }
    const LogWeights weights{logits, vocab, largest.value, kLog2E / settings.temperature};
    const double u = uniform(settings.seed, settings.draw);
    if (settings.temperature < kLeastTemperature) {
      token = largest.id;
    } else if (settings.top_k == 0 && settings.top_p >= 1 && settings.min_p <= 0) {
      token = draw_from_all(scans, weights, u, scratch);
    } else {
      token = draw_filtered(scans, weights, settings, u, scratch);
    }
  }
  sampled.token[row] = token;
  if (settings.top_logprobs < 0 && settings.target < 0) return true;
  const double log_sum = std::log(scans.sum({raw, vocab, best.value, kLog2E}, -INFINITY, nullptr));
  auto logprob = [&](float logit) { return float(double(logit) - double(best.value) - log_sum); };
  sampled.logprob[row] = logprob(raw[token]);
  if (settings.top_logprobs <= 0) return true;
  const int wanted = std::min(settings.top_logprobs, kMaxTopLogprobs);
  int32_t* ids = sampled.top_ids + int64_t(row) * kMaxTopLogprobs;
  float* values = sampled.top_logprobs + int64_t(row) * kMaxTopLogprobs;
  scans.top(raw, vocab, wanted, ids, values);
  for (int i = 0; i < wanted; ++i) values[i] = ids[i] < 0 ? -INFINITY : logprob(values[i]);
  return true;
}

}  // namespace

Sampler::Sampler(ThreadPool& pool, Isa isa) : pool_(pool), isa_(isa) {}
Sampler::~Sampler() = default;

void Sampler::reserve(int max_rows, int64_t vocab) {
  require(vocab > 0 && vocab < int64_t(1) << 31, "sampler: vocab must be from 1 to 2^31 - 1, not ", vocab);
  scratch_ = std::make_unique<SamplerScratch>();
  scratch_->vocab = vocab;
  scratch_->max_rows = max_rows;
  scratch_->threads.resize(size_t(pool_.size()));
  for (RowScratch& thread : scratch_->threads) {
    for (auto* floats : {&thread.logits, &thread.t, &thread.weight}) floats->resize(size_t(vocab));
    for (auto* ids : {&thread.id, &thread.order}) ids->resize(size_t(vocab));
    thread.chunk_sums.resize(size_t((vocab + kScanChunk - 1) / kScanChunk));
    thread.chunk.resize(size_t(kScanChunk));
  }
}

const SamplerScans& Sampler::scans() const { return isa_ >= Isa::avx512 ? avx512::sampler_scans : avx2::sampler_scans; }

Largest Sampler::largest(const float* logits, int64_t count) const { return scans().largest(logits, count); }

void Sampler::sample(Tensor logits, const Sampling& sampling, const Sampled& sampled) {
  require(scratch_ != nullptr && logits.rows <= scratch_->max_rows && logits.cols == scratch_->vocab, "sampler: ", logits.rows,
          " rows of ", logits.cols, " logits are not what was reserved");
  require(logits.dtype == DType::f32, "sampler: logits must be float32");
  const SamplerScans& scans = this->scans();
  pool_.for_each(logits.rows, [&](int64_t row, int thread) {
    sampled.token[row] = 0;
    sampled.logprob[row] = 0;
    if (sampling.top_logprobs != nullptr && sampling.top_logprobs[row] > 0) {
      for (int64_t i = row * kMaxTopLogprobs; i < (row + 1) * kMaxTopLogprobs; ++i) {
        sampled.top_ids[i] = -1;
        sampled.top_logprobs[i] = -INFINITY;
      }
    }
    bool drawn = sample_row(scans, logits.as<float>() + row * logits.stride, logits.cols, sampling, sampled, int(row),
                            scratch_->threads[size_t(thread)]);
    sampled.status[row] = drawn ? 0 : 1;
  });
}

}  // namespace oarlock::cpu
