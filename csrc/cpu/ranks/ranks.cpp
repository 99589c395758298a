#include "cpu/ranks/ranks.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace oarlock::cpu {

Ranks::Ranks(std::shared_ptr<Comm> comm, std::vector<int64_t> vocab_starts, ThreadPool& pool, Sampler& sampler)
    : comm_(std::move(comm)), starts_(std::move(vocab_starts)), pool_(pool), sampler_(sampler) {
  require(int(starts_.size()) == comm_->world() + 1, "vocab_starts must have ", comm_->world() + 1, " entries, not ",
          starts_.size());
  bytes_.resize(size_t(comm_->world()));
}

void Ranks::reserve(int max_rows) {
  mine_.resize(size_t(max_rows));
  all_.resize(size_t(max_rows) * bytes_.size());
  if (comm_->rank() != 0) return;
  gathered_.resize(size_t(max_rows * starts_.back()));
  whole_.resize(gathered_.size());
}

void Ranks::all_reduce(Tensor x) {
  require(x.dtype == DType::f32 && x.stride == x.cols, "ranks sum float32 rows that lie back to back");
  comm_->all_reduce(x.as<float>(), x.rows * x.cols);
}

void Ranks::choose_likeliest(Tensor part, const Sampled& sampled) {
  const size_t rows = size_t(part.rows);
  pool_.for_each(part.rows, [&](int64_t row, int) {
    Largest best = sampler_.largest(part.as<float>() + row * part.stride, part.cols);
    bool bad = best.nan || best.value == INFINITY;
    mine_[size_t(row)] = {best.value, int32_t(best.id + starts_[size_t(comm_->rank())]), bad};
  });
  for (size_t& bytes : bytes_) bytes = rows * sizeof(Candidate);
  comm_->gather(mine_.data(), all_.data(), bytes_);
  if (comm_->rank() != 0) return;
  for (size_t row = 0; row < rows; ++row) {
    Candidate best = all_[row];
    for (size_t r = 1; r < bytes_.size(); ++r) {  // in order of ids, so that the lowest wins a tie
      const Candidate& other = all_[r * rows + row];
      if (other.value > best.value) best = {other.value, other.id, best.bad};
      best.bad |= other.bad;
    }
    bool drawn = !best.bad && std::isfinite(best.value);
    sampled.token[row] = drawn ? best.id : 0;
    sampled.logprob[row] = 0;
    sampled.status[row] = drawn ? 0 : 1;
  }
}

void Ranks::gather_and_sample(Tensor part, const Sampling& sampling, const Sampled& sampled) {
  for (size_t r = 0; r < bytes_.size(); ++r) bytes_[r] = size_t(part.rows * (starts_[r + 1] - starts_[r])) * 4;
  comm_->gather(part.data, gathered_.data(), bytes_);
  if (comm_->rank() != 0) return;
  const int64_t vocab = starts_.back();
  pool_.for_each(part.rows, [&](int64_t row, int) {
    for (size_t r = 0; r < bytes_.size(); ++r) {
      int64_t width = starts_[r + 1] - starts_[r];
      std::memcpy(whole_.data() + row * vocab + starts_[r], gathered_.data() + part.rows * starts_[r] + row * width,
                  size_t(width) * 4);
    }
  });
  sampler_.sample({whole_.data(), DType::f32, part.rows, vocab, vocab}, sampling, sampled);
}

void Ranks::sample(Tensor part, const uint8_t* plain, const Sampling& sampling, const Sampled& sampled) {
  require(part.rows <= int64_t(mine_.size()) && part.stride == part.cols, "ranks: ", part.rows,
          " rows of logits are not what was reserved");
  for (int64_t begin = 0, end; begin < part.rows; begin = end) {
    for (end = begin + 1; end < part.rows && plain[end] == plain[begin];) ++end;
    Tensor run = part;
    run.data = part.as<float>() + begin * part.stride;
    run.rows = end - begin;
    const bool own = comm_->rank() == 0;
    const Sampled into = own ? from_row(sampled, int(begin)) : Sampled{};
    if (plain[begin]) {
      choose_likeliest(run, into);
    } else {
      gather_and_sample(run, own ? from_row(sampling, int(begin)) : Sampling{}, into);
    }
  }
}

}  // namespace oarlock::cpu
