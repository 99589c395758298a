// Sampling, plain: a full sort in double. What the fast version is compared with.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/sampler/philox.h"
#include "cpu/sampler/row.h"
#include "cpu/sampler/sampler.h"

namespace oarlock::cpu::reference {
namespace {

struct Token {
  double t, weight;
  int32_t id;
};

bool better(const Token& a, const Token& b) { return a.t > b.t || (a.t == b.t && a.id < b.id); }

int32_t draw(const std::vector<float>& logits, const RowSettings& row) {
  std::vector<Token> tokens;
  double largest = *std::max_element(logits.begin(), logits.end());
  for (size_t id = 0; id < logits.size(); ++id) {
    double t = (double(logits[id]) - largest) / double(row.temperature);
    if (row.min_p > 0 && t < std::log(double(row.min_p))) continue;
    tokens.push_back({t, std::exp(t), int32_t(id)});
  }
  std::sort(tokens.begin(), tokens.end(), better);
  if (row.top_k > 0 && tokens.size() > size_t(row.top_k)) tokens.resize(size_t(row.top_k));
  double total = 0, sum = 0;
  for (const Token& token : tokens) total += token.weight;
  if (row.top_p < 1) {
    size_t kept = 0;
    while (kept < tokens.size() && (kept == 0 || sum < double(row.top_p) * total)) sum += tokens[kept++].weight;
    tokens.resize(kept);
    total = sum;
  }
  std::sort(tokens.begin(), tokens.end(), [](const Token& a, const Token& b) { return a.id < b.id; });
  double wanted = uniform(row.seed, row.draw) * total, before = 0;
  int32_t last = 0;
  for (const Token& token : tokens) {
    if (token.weight > 0) last = token.id;
    if ((before += token.weight) > wanted) break;
  }
  return last;
}

}  // namespace

void sample_row(const float* raw, int64_t vocab, const Sampling& sampling, const Sampled& sampled, int row) {
  const RowSettings settings = row_settings(sampling, row, vocab);
  std::vector<float> logits(raw, raw + vocab);
  auto bad = [](const std::vector<float>& values) {
    bool nan = std::any_of(values.begin(), values.end(), [](float x) { return std::isnan(x) || x == INFINITY; });
    return nan || *std::max_element(values.begin(), values.end()) == -INFINITY;
  };
  sampled.token[row] = 0;
  sampled.logprob[row] = 0;
  sampled.status[row] = 1;
  if (bad(logits)) return;
  int32_t token = settings.target;
  if (token < 0) {
    edit_logits(logits.data(), vocab, settings, sampling);
    if (bad(logits)) return;
    token = settings.temperature < kLeastTemperature ? int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin())
                                                     : draw(logits, settings);
  }
  sampled.token[row] = token;
  sampled.status[row] = 0;
  if (settings.top_logprobs < 0 && settings.target < 0) return;
  double largest = *std::max_element(raw, raw + vocab), sum = 0;
  for (int64_t id = 0; id < vocab; ++id) sum += std::exp(double(raw[id]) - largest);
  auto logprob = [&](int64_t id) { return float(double(raw[id]) - largest - std::log(sum)); };
  sampled.logprob[row] = logprob(token);
  std::vector<Token> tokens;
  for (int64_t id = 0; id < vocab; ++id) tokens.push_back({double(raw[id]), 0, int32_t(id)});
  std::sort(tokens.begin(), tokens.end(), better);
  for (int i = 0; i < std::min<int>(settings.top_logprobs, kMaxTopLogprobs); ++i) {
    bool some = i < vocab && tokens[size_t(i)].t > -INFINITY;
    sampled.top_ids[int64_t(row) * kMaxTopLogprobs + i] = some ? tokens[size_t(i)].id : -1;
    sampled.top_logprobs[int64_t(row) * kMaxTopLogprobs + i] = some ? logprob(tokens[size_t(i)].id) : -INFINITY;
  }
}

}  // namespace oarlock::cpu::reference
