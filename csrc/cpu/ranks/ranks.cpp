#include "cpu/ranks/ranks.h"

#include <algorithm>
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
  const size_t world = size_t(comm_->world());
  rows_ = size_t(max_rows);
  told_.resize(rows_);
  wanted_.resize(rows_);
  verdicts_.resize(rows_);
  places_.resize(rows_ * world);
  auto row_bytes = [&](int rank) { return std::max(logit_bytes(rank), share_bytes(kMostShared)); };
  mine_.resize(rows_ * row_bytes(comm_->rank()));
  if (comm_->rank() != 0) return;
  size_t all = 0;
  for (int rank = 0; rank < comm_->world(); ++rank) all += row_bytes(rank);
  all_.resize(rows_ * all);
  shares_.resize(rows_ * world);
  whole_.resize(size_t(pool_.size()) * size_t(starts_.back()));
}

void Ranks::all_reduce(Tensor x) {
  require(x.dtype == DType::f32 && x.stride == x.cols, "ranks sum float32 rows that lie back to back");
  comm_->all_reduce(x.as<float>(), x.rows * x.cols);
}

template <typename BytesOf, typename Put>
void Ranks::exchange(int rows, BytesOf&& bytes_of, Put&& put) {
  size_t at = 0;
  for (int rank = 0; rank < comm_->world(); ++rank) {
    const size_t first = at;
    for (int row = 0; row < rows; ++row) {
      places_[size_t(rank) * rows_ + size_t(row)] = at;
      at += bytes_of(rank, row);
    }
    bytes_[size_t(rank)] = at - first;
  }
  const size_t* own = &places_[size_t(comm_->rank()) * rows_];
  pool_.for_each(rows, [&](int64_t row, int thread) { put(int(row), thread, mine_.data() + own[row] - own[0]); });
  comm_->gather(mine_.data(), all_.data(), bytes_);
}

// Rank 0 tells of its settings what the others need.
void Ranks::tell(int rows, const Sampling& sampling) {
  for (int row = 0; row < rows && comm_->rank() == 0; ++row) {
    const RowSettings own = row_settings(sampling, row, starts_.back());
    told_[size_t(row)] = {own.temperature, own.top_p, own.min_p, own.top_k, own.top_logprobs, own.target, own.edits_logits()};
  }
  const size_t bytes = size_t(rows) * sizeof(Told);
  comm_->broadcast(told_.data(), bytes, bytes);
}

RowSettings Ranks::settings(int row) const {
  const Told& told = told_[size_t(row)];
  RowSettings out = row_settings({}, row, starts_.back());
  out.temperature = told.temperature, out.top_p = told.top_p, out.min_p = told.min_p, out.top_k = told.top_k;
  out.top_logprobs = told.top_logprobs, out.target = told.target;
  return out;
}

void Ranks::sample(Tensor part, const uint8_t* plain, const Sampling& sampling, const Sampled& sampled) {
  require(part.rows <= int64_t(rows_) && part.stride == part.cols, "ranks: ", part.rows,
          " rows of logits are not what was reserved");
  const int rows = int(part.rows);
  if (std::all_of(plain, plain + rows, [](uint8_t row) { return row != 0; })) {
    std::fill_n(told_.begin(), rows, Told{});
  } else {
    tell(rows, sampling);
  }
  bool open = false;
  for (int row = 0; row < rows; ++row) {
    wanted_[size_t(row)] = wanted_of(settings(row), told_[size_t(row)].edited != 0);
    open |= wanted_[size_t(row)].open;
  }
  auto bytes_of = [&](int rank, int row) {
    const Wanted& wanted = wanted_[size_t(row)];
    return wanted.logits ? logit_bytes(rank) : share_bytes(wanted.tokens);
  };
  exchange(rows, bytes_of, [&](int row, int, uint8_t* into) {
    const float* logits = part.as<float>() + row * part.stride;
    const Wanted& wanted = wanted_[size_t(row)];
    if (wanted.logits) {
      std::memcpy(into, logits, size_t(part.cols) * 4);
    } else {
      make_share(sampler_.scans(), logits, part.cols, starts_[size_t(comm_->rank())], settings(row), wanted.tokens,
                 *reinterpret_cast<Share*>(into));
    }
  });
  if (comm_->rank() == 0) {
    pool_.for_each(rows, [&](int64_t row, int thread) { verdicts_[size_t(row)] = draw(sampling, sampled, int(row), thread); });
  }
  if (open) settle(part, sampling, sampled);
}

Verdict Ranks::draw(const Sampling& sampling, const Sampled& sampled, int row, int thread) {
  if (wanted_[size_t(row)].logits) {
    draw_whole(sampling, sampled, row, thread);
    return {};
  }
  begin_row(sampling, sampled, row);
  const int world = comm_->world();
  const Share** shares = &shares_[size_t(row) * size_t(world)];
  for (int rank = 0; rank < world; ++rank) shares[rank] = reinterpret_cast<const Share*>(received(rank, row));
  const RowSettings settings = row_settings(sampling, row, starts_.back());
  const int target_part = int(std::upper_bound(starts_.begin(), starts_.end(), int64_t(settings.target)) - starts_.begin()) - 1;
  return SharedRow(shares, world, settings).draw(sampler_.scans(), target_part, sampled, row, sampler_.scratch(thread));
}

void Ranks::draw_whole(const Sampling& sampling, const Sampled& sampled, int row, int thread) {
  float* whole = whole_.data() + thread * starts_.back();
  for (int rank = 0; rank < comm_->world(); ++rank)
    std::memcpy(whole + starts_[size_t(rank)], received(rank, row), size_t(width(rank)) * 4);
  sampler_.sample_row(whole, starts_.back(), sampling, sampled, row, thread);
}

void Ranks::settle(Tensor part, const Sampling& sampling, const Sampled& sampled) {
  const int rows = int(part.rows);
  const size_t bytes = size_t(rows) * sizeof(Verdict);
  comm_->broadcast(verdicts_.data(), bytes, bytes);
  auto decided = [](const Verdict& verdict) { return verdict.kind == Verdict::drawn; };
  if (std::all_of(verdicts_.begin(), verdicts_.begin() + rows, decided)) return;
  auto bytes_of = [&](int rank, int row) {
    const Verdict& verdict = verdicts_[size_t(row)];
    if (verdict.kind == Verdict::logits) return logit_bytes(rank);
    return verdict.kind == Verdict::find && verdict.part == rank ? sizeof(TokenLogit) : size_t(0);
  };
  exchange(rows, bytes_of, [&](int row, int thread, uint8_t* into) {
    const float* logits = part.as<float>() + row * part.stride;
    const Verdict& verdict = verdicts_[size_t(row)];
    if (verdict.kind == Verdict::logits) {
      std::memcpy(into, logits, size_t(part.cols) * 4);
    } else if (verdict.kind == Verdict::find && verdict.part == comm_->rank()) {
      *reinterpret_cast<TokenLogit*>(into) =
          find_in_part(sampler_.scans(), logits, part.cols, starts_[size_t(comm_->rank())], told_[size_t(row)].temperature,
                       verdict.weight, sampler_.scratch(thread));
    }
  });
  if (comm_->rank() != 0) return;
  pool_.for_each(rows, [&](int64_t r, int thread) {
    const int row = int(r);
    const Verdict& verdict = verdicts_[size_t(row)];
    if (verdict.kind == Verdict::logits) draw_whole(sampling, sampled, row, thread);
    if (verdict.kind != Verdict::find) return;
    const auto* found = reinterpret_cast<const TokenLogit*>(received(verdict.part, row));
    write_token(*found, verdict.log_sum, row_settings(sampling, row, starts_.back()), sampled, row);
  });
}

}  // namespace oarlock::cpu
