// Checks the sampler on every instruction set that this machine runs: random logits and settings against the full sort of the
// reference, log-probabilities within 2e-5, known answers of the generator, and each row the same alone as among others.
// A token may differ from the reference's where the draw or a filter falls on an edge within rounding: under 1 in 500.
// Usage: sampler_check [batches] [seed].
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cpu/sampler/philox.h"
#include "cpu/sampler/sampler.h"

namespace oarlock::cpu {
namespace {

constexpr Isa kIsas[] = {Isa::avx2, Isa::avx512};

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

bool close(float a, float b) { return a == b || std::abs(a - b) <= 2e-5f * std::max(1.0f, std::abs(b)); }

struct Tally {
  int rows = 0, other_tokens = 0, wrong = 0;
};

void compare(const Outcome& got, const Outcome& expected, const Settings& settings, int rows, Tally& tally) {
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

bool check_batch(std::mt19937& random, Tally (&tallies)[2]) {
  const int rows = 1 + int(random() % 12);
  const int64_t vocab = random() % 2 ? 40 + int64_t(random() % 300) : 20000 + int64_t(random() % 30000);
  std::normal_distribution<float> normal;
  Settings settings;
  std::vector<float> logits(size_t(rows * vocab));
  for (int r = 0; r < rows; ++r) {
    settings.add_row(random, vocab);
    float spread = random() % 3 == 0 ? 0.3f : 3;
    for (int64_t id = 0; id < vocab; ++id) {
      float x = spread * normal(random);
      logits[size_t(r * vocab + id)] = random() % 4 == 0 ? std::round(x) : x;  // ties
    }
    if (random() % 16 == 0) logits[size_t(r * vocab) + random() % uint64_t(vocab)] = NAN;
    if (random() % 16 == 0) std::fill_n(logits.begin() + r * vocab, vocab, -INFINITY);
  }
  Outcome expected(rows);
  for (int r = 0; r < rows; ++r) reference::sample_row(logits.data() + r * vocab, vocab, settings.from(0), expected.sampled, r);
  bool same = true;
  for (Isa isa : kIsas) {
    if (isa > machine_isa()) continue;
    ThreadPool pool(3), alone(1);
    Sampler sampler(pool, isa), single(alone, isa);
    sampler.reserve(rows, vocab);
    single.reserve(1, vocab);
    Outcome got(rows);
    sampler.sample({logits.data(), DType::f32, rows, vocab, vocab}, settings.from(0), got.sampled);
    compare(got, expected, settings, rows, tallies[isa == Isa::avx2 ? 0 : 1]);
    for (int r = 0; r < rows; ++r) {
      Outcome one(1);
      single.sample({logits.data() + r * vocab, DType::f32, 1, vocab, vocab}, settings.from(r), one.sampled);
      same = same && one.token[0] == got.token[size_t(r)] && one.logprob[0] == got.logprob[size_t(r)] &&
             one.status[0] == got.status[size_t(r)];
    }
  }
  return same;
}

bool generator_known() {
  Philox zero = philox4x32({0, 0, 0, 0}, 0), ones = philox4x32({~0u, ~0u, ~0u, ~0u}, ~uint64_t(0));
  const uint32_t of_zero[] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  const uint32_t of_ones[] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  bool good = true;
  for (int i = 0; i < 4; ++i) good = good && zero.words[i] == of_zero[i] && ones.words[i] == of_ones[i];
  return good;
}

}  // namespace
}  // namespace oarlock::cpu

int main(int argc, char** argv) {
  using namespace oarlock;
  const int batches = argc > 1 ? std::atoi(argv[1]) : 120;
  std::mt19937 random(argc > 2 ? uint32_t(std::atoi(argv[2])) : 1u);
  if (machine_isa() < Isa::avx512) std::printf("sampler: avx512 is not checked: this machine goes up to avx2\n");
  bool good = cpu::generator_known();
  if (!good) std::printf("FAIL the generator's known answers\n");
  cpu::Tally tallies[2];
  for (int batch = 0; batch < batches; ++batch) {
    if (cpu::check_batch(random, tallies)) continue;
    std::printf("FAIL batch %d: a row alone differs from the row among others\n", batch);
    good = false;
  }
  for (int i = 0; i < 2; ++i) {
    const cpu::Tally& tally = tallies[i];
    if (tally.rows == 0) continue;
    std::printf("sampler %s: %d rows, %d wrong, %d drew another token than the reference\n", name_of(cpu::kIsas[i]), tally.rows,
                tally.wrong, tally.other_tokens);
    good = good && tally.wrong == 0 && tally.other_tokens * 500 <= tally.rows;
  }
  return good ? 0 : 1;
}
