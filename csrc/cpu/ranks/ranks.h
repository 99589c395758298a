// What the ranks of a split model exchange in a step on the CPU: sums of their shares of a product, and what is needed to
// draw tokens from a vocabulary that each of them holds a part of (cpu/sampler/parts.h).
#pragma once

#include <memory>
#include <vector>

#include "base/comm.h"
#include "base/ops.h"
#include "base/threads.h"
#include "cpu/sampler/parts.h"
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

  // Draws on rank 0 from everybody's `part` of the logits; `sampling` and `sampled` are read there alone. plain: rows whose
  // likeliest token is all that is wanted. Where all are, that takes one exchange; otherwise rank 0 first tells what is wanted,
  // and says a word more and has a second exchange when a row has no filter or one that the shares don't settle.
  void sample(Tensor part, const uint8_t* plain, const Sampling& sampling, const Sampled& sampled);

 private:
  // What every rank must know of a row; the likeliest token unless it says otherwise.
  struct Told {
    float temperature = 0, top_p = 1, min_p = 0;
    int32_t top_k = 0, top_logprobs = -1, target = -1, edited = 0;
  };

  // One exchange: bytes_of(rank, row) are what a rank tells of a row, put(row, into) writes this rank's.
  template <typename BytesOf, typename Put>
  void exchange(int rows, BytesOf&& bytes_of, Put&& put);
  // What rank 0 received.
  const uint8_t* received(int rank, int row) const { return all_.data() + places_[size_t(rank) * rows_ + size_t(row)]; }
  int64_t width(int rank) const { return starts_[size_t(rank) + 1] - starts_[size_t(rank)]; }
  size_t logit_bytes(int rank) const { return size_t(width(rank) + 1) / 2 * 8; }

  void tell(int rows, const Sampling& sampling);
  RowSettings settings(int row) const;
  Verdict draw(const Sampling& sampling, const Sampled& sampled, int row, int thread);
  void draw_whole(const Sampling& sampling, const Sampled& sampled, int row, int thread);
  // The rows that the shares did not decide, by rank 0's word.
  void settle(Tensor part, const Sampling& sampling, const Sampled& sampled);

  std::shared_ptr<Comm> comm_;
  const std::vector<int64_t> starts_;
  ThreadPool& pool_;
  Sampler& sampler_;
  size_t rows_ = 0;
  std::vector<Told> told_;
  std::vector<Wanted> wanted_;
  std::vector<Verdict> verdicts_;
  std::vector<size_t> places_, bytes_;
  std::vector<uint8_t> mine_, all_;
  std::vector<float> whole_;          // a row of logits for each thread
  std::vector<const Share*> shares_;  // of every rank, for each row
};

}  // namespace oarlock::cpu
