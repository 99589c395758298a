// Random logits and settings for the checks of sampling, and what comparing two outcomes needs.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "base/ops.h"

namespace oarlock::cpu {

struct Outcome {
  std::vector<int32_t> token, top_ids, status;
  std::vector<float> logprob, top_logprobs;
  Sampled sampled;

  explicit Outcome(int rows)
      : token(size_t(rows)),
        top_ids(size_t(rows) * kMaxTopLogprobs),
        status(size_t(rows)),
        logprob(size_t(rows)),
        top_logprobs(size_t(rows) * kMaxTopLogprobs) {
    sampled = {token.data(), logprob.data(), top_ids.data(), top_logprobs.data(), status.data()};
  }
};

// The arrays of a Sampling with random settings, every group in use.
struct Settings {
  std::vector<float> temperature, top_p, min_p, repetition, presence, frequency, bias_values;
  std::vector<int32_t> top_k, draw, top_logprobs, target, history_starts{0}, history_ids, history_counts, bias_starts{0},
      bias_ids, mask_rows;
  std::vector<uint64_t> seed;
  std::vector<uint32_t> masks;

  void add_row(std::mt19937& random, int64_t vocab) {
    auto one_in = [&](unsigned n) { return random() % n == 0; };
    auto fraction = [&] { return float(random() % 1000) / 1000; };
    temperature.push_back(one_in(3) ? 0 : 0.2f + 2 * fraction());
    top_p.push_back(one_in(2) ? 1 : 0.05f + 0.94f * fraction());
    min_p.push_back(one_in(3) ? 0.3f * fraction() : 0);
    top_k.push_back(one_in(2) ? int32_t(1 + random() % (one_in(4) ? uint64_t(vocab) : 60)) : 0);
    repetition.push_back(one_in(3) ? 1 + fraction() : 1);
    presence.push_back(one_in(3) ? fraction() : 0);
    frequency.push_back(one_in(3) ? fraction() : 0);
    seed.push_back(uint64_t(random()) << 32 | random());
    draw.push_back(int32_t(random() % 4096));
    top_logprobs.push_back(int32_t(random() % 22) - 1);
    target.push_back(one_in(8) ? int32_t(random() % uint64_t(vocab)) : -1);
    for (int i = 0; i < int(random() % 30); ++i) {
      history_ids.push_back(int32_t(i * (vocab / 30)));
      history_counts.push_back(int32_t(random() % 4));
    }
    history_starts.push_back(int32_t(history_ids.size()));
    for (int i = 0; i < int(one_in(3) ? random() % 10 : 0); ++i) {
      bias_ids.push_back(int32_t(random() % uint64_t(vocab)));
      bias_values.push_back(one_in(4) ? -INFINITY : 10 * fraction() - 5);
    }
    bias_starts.push_back(int32_t(bias_ids.size()));
    mask_rows.push_back(one_in(4) ? int32_t(mask_rows.size()) : -1);
    for (int64_t word = 0; word < (vocab + 31) / 32; ++word) masks.push_back(uint32_t(random() & random()));
  }

  // Rows from `first` on.
  Sampling from(int64_t first) const {
    Sampling s;
    s.temperature = temperature.data() + first;
    s.top_p = top_p.data() + first;
    s.min_p = min_p.data() + first;
    s.top_k = top_k.data() + first;
    s.repetition_penalty = repetition.data() + first;
    s.presence_penalty = presence.data() + first;
    s.frequency_penalty = frequency.data() + first;
    s.seed = seed.data() + first;
    s.draw = draw.data() + first;
    s.top_logprobs = top_logprobs.data() + first;
    s.target = target.data() + first;
    s.history_starts = history_starts.data() + first;
    s.history_ids = history_ids.data();
    s.history_counts = history_counts.data();
    s.bias_starts = bias_starts.data() + first;
    s.bias_ids = bias_ids.data();
    s.bias_values = bias_values.data();
    s.masks = masks.data();
    s.mask_rows = mask_rows.data() + first;
    return s;
  }
};

// A small vocabulary or one of a real model's size.
inline int64_t random_vocab(std::mt19937& random) {
  return random() % 2 ? 40 + int64_t(random() % 300) : 20000 + int64_t(random() % 30000);
}

// [rows, vocab], with ties, and now and then a NaN or nothing; adds each row's settings.
inline std::vector<float> random_logits(std::mt19937& random, int rows, int64_t vocab, Settings& settings) {
  std::normal_distribution<float> normal;
  std::vector<float> logits(size_t(rows * vocab));
  for (int r = 0; r < rows; ++r) {
    settings.add_row(random, vocab);
    float spread = random() % 3 == 0 ? 0.3f : 3;
    for (int64_t id = 0; id < vocab; ++id) {
      float x = spread * normal(random);
      logits[size_t(r * vocab + id)] = random() % 4 == 0 ? std::round(x) : x;
    }
    if (random() % 16 == 0) logits[size_t(r * vocab) + random() % uint64_t(vocab)] = NAN;
    if (random() % 16 == 0) std::fill_n(logits.begin() + r * vocab, vocab, -INFINITY);
  }
  return logits;
}

inline bool close(float a, float b) { return a == b || std::abs(a - b) <= 2e-5f * std::max(1.0f, std::abs(b)); }

struct Tally {
  int rows = 0, other_tokens = 0, wrong = 0;
};

inline void compare(const Outcome& got, const Outcome& expected, const Settings& settings, int rows, Tally& tally) {
  for (int r = 0; r < rows; ++r) {
    size_t at = size_t(r);
    ++tally.rows;
    bool right = got.status[at] == expected.status[at];
    if (got.token[at] != expected.token[at]) {
      ++tally.other_tokens;
      right = right && settings.temperature[at] > 0;
    } else {
      right = right && close(got.logprob[at], expected.logprob[at]);
    }
    for (int i = 0; i < settings.top_logprobs[at] && got.status[at] == 0 && i < kMaxTopLogprobs; ++i) {
      size_t place = at * kMaxTopLogprobs + size_t(i);
      right = right && got.top_ids[place] == expected.top_ids[place] &&
              close(got.top_logprobs[place], expected.top_logprobs[place]);
    }
    tally.wrong += right ? 0 : 1;
  }
}

}  // namespace oarlock::cpu
