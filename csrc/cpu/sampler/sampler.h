// Log-probabilities and the next token of each row of logits.
#pragma once

#include <memory>

#include "base/isa.h"
#include "base/ops.h"
#include "base/threads.h"
#include "cpu/sampler/scan.h"

namespace oarlock::cpu {

struct RowScratch;
struct SamplerScratch;

// The semantics are those of Sampling and Sampled (base/ops.h). A null array means its neutral value for every row; a row
// without top_logprobs reports logprob 0. Temperatures under 1e-5 count as 0. Beyond ops.h: +inf among the logits counts as
// NaN; ids of history and bias outside the vocabulary are ignored; unused places of top_ids are -1 with log-probability -inf,
// and top_ids and top_logprobs may be null when no row wants them.
//
// The draw: u in [0, 1) from Philox4x32-10 with key = seed and counter = (draw, 0, 0, 0); the token is the first, in order of
// id among those that the filters keep, at which the running sum of probabilities exceeds u times their total.
// A row is the work of one thread and its result depends on that row alone.
class Sampler {
 public:
  explicit Sampler(ThreadPool& pool, Isa isa = selected_isa());
  ~Sampler();
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  // Allocates everything that sample() uses, for up to max_rows rows of vocab logits.
  void reserve(int max_rows, int64_t vocab);

  // logits are float32 [rows, vocab] and are left as they are. InvalidArgument beyond what was reserved.
  void sample(Tensor logits, const Sampling& sampling, const Sampled& sampled);

  // One row of `vocab` logits, the one of index `row` in sampling and sampled, by a thread of the pool.
  void sample_row(const float* logits, int64_t vocab, const Sampling& sampling, const Sampled& sampled, int row, int thread);

  const SamplerScans& scans() const;
  RowScratch& scratch(int thread);

 private:
  ThreadPool& pool_;
  const Isa isa_;
  std::unique_ptr<SamplerScratch> scratch_;
};

// A row's place in `sampled` before anything is drawn.
void begin_row(const Sampling& sampling, const Sampled& sampled, int row);

namespace reference {
void sample_row(const float* logits, int64_t vocab, const Sampling& sampling, const Sampled& sampled, int row);
}

}  // namespace oarlock::cpu
