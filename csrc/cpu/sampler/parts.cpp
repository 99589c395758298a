#include "cpu/sampler/parts.h"

#include <algorithm>
#include <limits>

#include "cpu/sampler/draw.h"
#include "cpu/sampler/philox.h"

namespace oarlock::cpu {
namespace {

bool before(const TokenLogit& a, const TokenLogit& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

// Whether the token's log-probability is wanted.
bool reports(const RowSettings& row) { return row.top_logprobs >= 0 || row.target >= 0; }

double factor_of(const RowSettings& row) { return double(kLog2E / row.temperature); }

}  // namespace

Wanted wanted_of(const RowSettings& row, bool edited) {
  const int reported = std::clamp(row.top_logprobs, 0, kMaxTopLogprobs);
  Wanted wanted;
  if (row.target >= 0) {
    wanted.tokens = reported;
  } else if (edited) {
    wanted.logits = true;
  } else if (row.temperature < kLeastTemperature) {
    wanted.tokens = std::max(reported, 1);
  } else if (row.top_k > 0) {
    wanted.logits = row.top_k > kMostShared;
    wanted.tokens = std::max(reported, row.top_k);
  } else {
    wanted.open = true;
    wanted.tokens = has_filters(row) ? kMostShared : reported;
  }
  return wanted;
}

void make_share(const SamplerScans& scans, const float* logits, int64_t count, int64_t first, const RowSettings& row,
                int tokens, Share& share) {
  const Largest best = scans.largest(logits, count);
  share = {0, 0, best.value, -INFINITY, best.nan || best.value == INFINITY, 0};
  if (share.bad || best.value == -INFINITY) return;
  if (row.target >= first && row.target < first + count) share.target = logits[row.target - first];
  if (reports(row)) share.raw_weight = scans.sum(log_weights(logits, count, best.value, 1), -INFINITY, nullptr);
  if (row.target < 0 && row.temperature >= kLeastTemperature && row.top_k == 0)
    share.weight = scans.sum(log_weights(logits, count, best.value, row.temperature), -INFINITY, nullptr);
  auto* list = reinterpret_cast<TokenLogit*>(&share + 1);
  if (tokens == 1) {
    list[share.tokens++] = {best.value, best.id + int32_t(first)};
    return;
  }
  int32_t ids[kMostShared];
  float values[kMostShared];
  scans.top(logits, count, tokens, ids, values);
  for (int i = 0; i < tokens && ids[i] >= 0; ++i) list[share.tokens++] = {values[i], ids[i] + int32_t(first)};
}

TokenLogit find_in_part(const SamplerScans& scans, const float* logits, int64_t count, int64_t first, float temperature,
                        double weight, RowScratch& scratch) {
  const LogWeights row = log_weights(logits, count, scans.largest(logits, count).value, temperature);
  scans.sum(row, -INFINITY, scratch.chunk_sums.data());
  const int32_t id = find_weight(scans, row, weight, scratch);
  return {logits[id], id + int32_t(first)};
}

SharedRow::SharedRow(const Share* const* shares, int parts, const RowSettings& settings)
    : shares_(shares), parts_(parts), settings_(settings) {
  for (int part = 0; part < parts; ++part) {
    bad_ |= shares[part]->bad != 0;
    if (shares[part]->largest > largest_) largest_ = shares[part]->largest, best_part_ = part;
  }
}

// What a part's weights count in those of the whole, whose likeliest token weighs 1.
double SharedRow::scale(int part, double factor) const {
  return std::exp2((double(shares_[part]->largest) - double(largest_)) * factor);
}

Verdict SharedRow::draw(const SamplerScans& scans, int target_part, const Sampled& sampled, int row,
                        RowScratch& scratch) const {
  if (bad_ || largest_ == -INFINITY) {
    sampled.status[row] = 1;
    return {};
  }
  TokenLogit chosen{};
  Verdict verdict;
  if (settings_.target >= 0) {
    chosen = {shares_[target_part]->target, settings_.target};
  } else if (settings_.temperature < kLeastTemperature) {
    chosen = tokens_of(*shares_[best_part_])[0];
  } else {
    const double u = uniform(settings_.seed, settings_.draw);
    if (!has_filters(settings_)) {
      verdict = find(u);
    } else if (!draw_filtered(scans, u, scratch, chosen)) {
      verdict.kind = Verdict::logits;
      return verdict;
    }
  }
  if (reports(settings_)) verdict.log_sum = report(sampled, row, scratch);
  if (verdict.kind == Verdict::drawn) write_token(chosen, verdict.log_sum, settings_, sampled, row);
  return verdict;
}

// The part in which a draw without filters falls.
Verdict SharedRow::find(double u) const {
  const double factor = factor_of(settings_);
  auto weight = [&](int part) { return shares_[part]->weight > 0 ? shares_[part]->weight * scale(part, factor) : 0; };
  double total = 0, passed = 0;
  for (int part = 0; part < parts_; ++part) total += weight(part);
  int part = 0;
  while (part + 1 < parts_ && passed + weight(part) <= u * total) passed += weight(part++);
  // Rounding may carry it past the last weight: then the nearest earlier part that has any.
  while (part > 0 && weight(part) == 0) --part;
  return {Verdict::find, part, (u * total - passed) / scale(part, factor), 0};
}

// False when the filters may keep tokens that no share has.
bool SharedRow::draw_filtered(const SamplerScans& scans, double u, RowScratch& scratch, TokenLogit& chosen) const {
  // A share that is full may have left out what comes after its last token; nothing before the first of these is missing.
  const int wanted = wanted_of(settings_, false).tokens;
  TokenLogit last{-INFINITY, std::numeric_limits<int32_t>::max()};
  double all = 0;
  for (int part = 0; part < parts_; ++part) {
    const Share& share = *shares_[part];
    if (share.tokens == wanted && before(tokens_of(share)[wanted - 1], last)) last = tokens_of(share)[wanted - 1];
    if (share.weight > 0) all += share.weight * scale(part, factor_of(settings_));
  }
  std::vector<TokenLogit>& best = scratch.best;
  best.clear();
  for (int part = 0; part < parts_; ++part) {
    const TokenLogit* list = tokens_of(*shares_[part]);
    for (int i = 0; i < shares_[part]->tokens && !before(last, list[i]); ++i) best.push_back(list[i]);
  }
  std::sort(best.begin(), best.end(), [](const TokenLogit& a, const TokenLogit& b) { return a.id < b.id; });
  for (size_t i = 0; i < best.size(); ++i) scratch.logits[i] = best[i].logit;
  const LogWeights row = log_weights(scratch.logits.data(), int64_t(best.size()), largest_, settings_.temperature);

  const bool complete = last.logit == -INFINITY;
  const bool least_passed = settings_.min_p > 0 && (last.logit - row.largest) * row.factor < least_log_weight(settings_);
  if (complete || least_passed) {
    all = -1;
  } else if (settings_.top_k == 0) {
    if (settings_.min_p > 0 || scans.sum(row, -INFINITY, nullptr) < double(settings_.top_p) * all) return false;
  }
  chosen = best[size_t(cpu::draw_filtered(scans, row, settings_, u, all, scratch))];
  return true;
}

// Writes the likeliest tokens; returns the logarithm of the sum of all exponentials.
double SharedRow::report(const Sampled& sampled, int row, RowScratch& scratch) const {
  double sum = 0;
  for (int part = 0; part < parts_; ++part) {
    if (shares_[part]->raw_weight > 0) sum += shares_[part]->raw_weight * scale(part, double(kLog2E));
  }
  const double log_sum = double(largest_) + std::log(sum);
  // The lists are sorted: the best of what they begin with comes next.
  int32_t* heads = scratch.order.data();
  std::fill_n(heads, parts_, 0);
  for (int i = 0; i < std::min(settings_.top_logprobs, kMaxTopLogprobs); ++i) {
    const TokenLogit* next = nullptr;
    int from = 0;
    for (int part = 0; part < parts_; ++part) {
      const TokenLogit* head = tokens_of(*shares_[part]) + heads[part];
      if (heads[part] < shares_[part]->tokens && (next == nullptr || before(*head, *next))) next = head, from = part;
    }
    if (next == nullptr) break;
    ++heads[from];
    sampled.top_ids[int64_t(row) * kMaxTopLogprobs + i] = next->id;
    sampled.top_logprobs[int64_t(row) * kMaxTopLogprobs + i] = float(double(next->logit) - log_sum);
  }
  return log_sum;
}

void write_token(TokenLogit chosen, double log_sum, const RowSettings& settings, const Sampled& sampled, int row) {
  sampled.token[row] = chosen.id;
  if (reports(settings)) sampled.logprob[row] = float(double(chosen.logit) - log_sum);
  sampled.status[row] = 0;
}

}  // namespace oarlock::cpu
