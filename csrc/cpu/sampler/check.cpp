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
#include "cpu/sampler/random_rows.h"
#include "cpu/sampler/sampler.h"

namespace oarlock::cpu {
namespace {

constexpr Isa kIsas[] = {Isa::avx2, Isa::avx512};

bool check_batch(std::mt19937& random, Tally (&tallies)[2]) {
  const int rows = 1 + int(random() % 12);
  const int64_t vocab = random_vocab(random);
  Settings settings;
  std::vector<float> logits = random_logits(random, rows, vocab, settings);
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
