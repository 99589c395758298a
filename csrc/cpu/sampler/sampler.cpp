// Draws each row's token: one pass where greedy allows it, otherwise by the weights (draw.h).
#include "cpu/sampler/sampler.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "cpu/sampler/draw.h"
#include "cpu/sampler/philox.h"
#include "cpu/sampler/row.h"

namespace oarlock::cpu {

struct SamplerScratch {
  int64_t vocab = 0, max_rows = 0;
  std::vector<RowScratch> threads;
};

namespace {

// One row to its place in `sampled`; false when nothing can be drawn.
bool draw_row(const SamplerScans& scans, const float* raw, int64_t vocab, const Sampling& sampling, const Sampled& sampled,
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
    const LogWeights weights = log_weights(logits, vocab, largest.value, settings.temperature);
    const double u = uniform(settings.seed, settings.draw);
    if (settings.temperature < kLeastTemperature) {
      token = largest.id;
    } else if (!has_filters(settings)) {
      token = draw_from_all(scans, weights, u, scratch);
    } else {
      token = draw_filtered(scans, weights, settings, u, -1, scratch);
    }
  }
  sampled.token[row] = token;
  if (settings.top_logprobs < 0 && settings.target < 0) return true;
  const double log_sum = std::log(scans.sum(log_weights(raw, vocab, best.value, 1), -INFINITY, nullptr));
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
  for (RowScratch& thread : scratch_->threads) thread.reserve(vocab);
}

const SamplerScans& Sampler::scans() const { return isa_ >= Isa::avx512 ? avx512::sampler_scans : avx2::sampler_scans; }

RowScratch& Sampler::scratch(int thread) { return scratch_->threads[size_t(thread)]; }

void Sampler::sample(Tensor logits, const Sampling& sampling, const Sampled& sampled) {
  require(scratch_ != nullptr && logits.rows <= scratch_->max_rows && logits.cols == scratch_->vocab, "sampler: ", logits.rows,
          " rows of ", logits.cols, " logits are not what was reserved");
  require(logits.dtype == DType::f32, "sampler: logits must be float32");
  pool_.for_each(logits.rows, [&](int64_t row, int thread) {
    sample_row(logits.as<float>() + row * logits.stride, logits.cols, sampling, sampled, int(row), thread);
  });
}

void Sampler::sample_row(const float* logits, int64_t vocab, const Sampling& sampling, const Sampled& sampled, int row,
                         int thread) {
  begin_row(sampling, sampled, row);
  sampled.status[row] = draw_row(scans(), logits, vocab, sampling, sampled, row, scratch(thread)) ? 0 : 1;
}

void begin_row(const Sampling& sampling, const Sampled& sampled, int row) {
  sampled.token[row] = 0;
  sampled.logprob[row] = 0;
  if (sampling.top_logprobs == nullptr || sampling.top_logprobs[row] <= 0) return;
  for (int64_t i = int64_t(row) * kMaxTopLogprobs; i < int64_t(row + 1) * kMaxTopLogprobs; ++i) {
    sampled.top_ids[i] = -1;
    sampled.top_logprobs[i] = -INFINITY;
  }
}

}  // namespace oarlock::cpu
