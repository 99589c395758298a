// What the ranks of a split model exchange in a step on the CPU: sums of their shares of a product, and what is needed to
// draw tokens from a vocabulary that each of them holds a part of.
#pragma once

#include <memory>
#include <vector>

#include "base/comm.h"
#include "base/ops.h"
#include "base/threads.h"
#include "cpu/sampler/sampler.h"

namespace oarlock::cpu {

class Ranks {
 public:
  // vocab_starts: world + 1 numbers; rank r holds the tokens [vocab_starts[r], vocab_starts[r + 1]).
  Ranks(std::shared_ptr<Comm> comm, std::vector<int64_t> vocab_starts, ThreadPool& pool, Sampler& sampler);

  // Allocates everything for up to max_rows rows of logits.
  void reserve(int max_rows);

  // x (float32, rows back to back) becomes the sum over ranks.
  void all_reduce(Tensor x);

  // Draws on rank 0 from everybody's `part` of the logits. Rows marked in `plain` exchange their likeliest token alone, the
  // others their logits. sampling and sampled are read on rank 0 only.
  void sample(Tensor part, const uint8_t* plain, const Sampling& sampling, const Sampled& sampled);

 private:
  struct Candidate {
    float value;
    int32_t id;
    int32_t bad;
  };

  void choose_likeliest(Tensor part, const Sampled& sampled);
  void gather_and_sample(Tensor part, const Sampling& sampling, const Sampled& sampled);

  std::shared_ptr<Comm> comm_;
  const std::vector<int64_t> starts_;
  ThreadPool& pool_;
  Sampler& sampler_;
  std::vector<Candidate> mine_, all_;
  std::vector<float> gathered_, whole_;
  std::vector<size_t> bytes_;
};

}  // namespace oarlock::cpu
