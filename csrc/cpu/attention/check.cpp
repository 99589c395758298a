// Checks attention on every instruction set that this machine runs: random shapes, page tables and windows; within a
// tolerance of the plain reference; and bit for bit the same whatever the chunks, the neighbours, the threads, and whether a
// prefix was computed or found in another sequence's blocks. Usage: attention_check [shapes] [seed].
#include <cstdio>
#include <cstdlib>
#include <map>

#include "cpu/attention/fixture.h"
#include "cpu/attention/tile.h"

namespace oarlock::cpu {
namespace {

constexpr Isa kIsas[] = {Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx};

using Rows = std::map<std::pair<uint64_t, int>, std::vector<char>>;  // (contents, position) to a row of out

// Runs the steps and adds what each token got to `rows`; false when a token got other bits than before.
bool run(Fixture& fixture, const std::vector<std::vector<Chunk>>& steps, int threads, Isa isa, Rows& rows) {
  ThreadPool pool(threads);
  Rope rope(pool, isa);
  Attention attention(pool, isa);
  AttentionLimits limits{0, 0, fixture.shape.heads, fixture.shape.kv_heads, fixture.shape.head_dim, fixture.max_context};
  for (const auto& chunks : steps) {
    int tokens = 0;
    for (const Chunk& chunk : chunks) tokens += chunk.count;
    limits.max_tokens = std::max(limits.max_tokens, tokens);
    limits.max_sequences = std::max(limits.max_sequences, int(chunks.size()));
  }
  attention.reserve(limits);
  bool same = true;
  for (const auto& chunks : steps) {
    Fixture::Step step = fixture.make_step(chunks);
    fixture.rope(rope, step);
    attention.attention(step.out_tensor, step.query_tensor, fixture.shape, fixture.cache(), step.batch);
    size_t bytes = size_t(step.out_tensor.cols * size_of(fixture.dtype)), token = 0;
    for (const Chunk& chunk : chunks) {
      for (int p = chunk.begin; p < chunk.begin + chunk.count; ++p, ++token) {
        std::vector<char> row(step.out.begin() + long(token * bytes), step.out.begin() + long((token + 1) * bytes));
        auto [place, is_new] = rows.try_emplace({fixture.contents[size_t(chunk.sequence)], p}, row);
        same = same && (is_new || place->second == row);
      }
    }
  }
  return same;
}

// The sequences in random chunks, several a step, the last tokens of each one by one.
std::vector<std::vector<Chunk>> random_steps(const std::vector<int>& lengths, std::mt19937& random) {
  std::vector<int> done(lengths.size(), 0);
  std::vector<std::vector<Chunk>> steps;
  for (bool left = true; left;) {
    left = false;
    std::vector<Chunk> chunks;
    for (size_t s = 0; s < lengths.size(); ++s) {
      int remaining = lengths[s] - done[s];
      if (remaining == 0) continue;
      left = true;
      if (random() % 4 == 0) continue;
      int count = remaining <= 12 ? 1 : std::min<int>(remaining - 12, 1 + int(random() % (random() % 2 ? 20 : 400)));
      chunks.push_back({int(s), done[s], count});
      done[s] += count;
    }
    if (!chunks.empty()) steps.push_back(chunks);
  }
  return steps;
}

// Largest difference from the reference over some tokens of sequence s, relative to the largest value there.
double error_of(Fixture& fixture, int s, int length, Isa isa, const Rows& rows) {
  ThreadPool pool(1);
  std::vector<Chunk> chunks;
  for (int p = length - 1; p >= 0; p -= 1 + length / 12) chunks.push_back({s, p, 1});
  Fixture::Step step = fixture.make_step(chunks);
  const auto keys = fixture.keys, values = fixture.values;  // writing a token again takes those after it with it
  fixture.rope(Rope(pool, isa), step);
  fixture.keys = keys;
  fixture.values = values;
  reference::attention(step.out_tensor, step.query_tensor, fixture.shape, fixture.cache(), step.batch);
  double error = 0, largest = 0;
  for (size_t c = 0; c < chunks.size(); ++c) {
    const auto& row = rows.at({fixture.contents[size_t(s)], chunks[c].begin});
    for (size_t i = 0; i < size_t(step.out_tensor.cols); ++i) {
      double expected = double(element(step.out, fixture.dtype, c * size_t(step.out_tensor.cols) + i));
      double difference = std::abs(double(element(row, fixture.dtype, i)) - expected);
      error = std::max(error, std::isnan(difference) ? INFINITY : difference);
      largest = std::max(largest, std::abs(expected));
    }
  }
  return error / largest;
}

bool check_shape(int number, std::mt19937& random) {
  constexpr int kHeadDims[] = {64, 128, 80, 96, 64, 256, 16, 112};
  constexpr int kGroups[] = {3, 1, 4, 7, 8, 2, 1, 20};
  AttentionShape shape;
  shape.head_dim = kHeadDims[number % 8];
  int group = kGroups[random() % 8];
  shape.kv_heads = 1 + int(random() % 3);
  shape.heads = shape.kv_heads * group;
  shape.scale = 1 / std::sqrt(float(shape.head_dim));
  shape.window = random() % 3 == 0 ? 1 + int(random() % 400) : 0;
  DType dtype = number % 4 == 3 ? DType::f32 : DType::bf16;
  if (dtype == DType::bf16 && random() % 4 == 0) shape.scale *= 30;  // scores that differ by more than exponentials can hold
  std::vector<int> lengths;
  for (int s = 0; s < 3; ++s) lengths.push_back(1 + int(random() % 380));
  lengths.push_back(kPartitionKeys + 1 + int(random() % 600));
  const int shared = int(lengths.size()) - 1, twin = shared + 1;
  std::vector<int> with_twin = lengths;
  with_twin.push_back(lengths.back());
  uint32_t seed = uint32_t(random());
  bool good = true;
  for (Isa isa : kIsas) {
    if (isa > machine_isa()) continue;
    Fixture fixture(shape, dtype, number % 2 == 1, with_twin, seed);
    Rows rows;
    std::vector<std::vector<Chunk>> alone;
    for (size_t s = 0; s < lengths.size(); ++s) alone.push_back({{int(s), 0, lengths[s]}});
    run(fixture, alone, 1, isa, rows);
    double error = 0;
    for (size_t s = 0; s < lengths.size(); ++s) error = std::max(error, error_of(fixture, int(s), lengths[s], isa, rows));
    double allowed = dtype == DType::f32 ? 3e-6 : 1.2e-2;
    bool same = run(fixture, random_steps(lengths, random), 3, isa, rows);
    same = run(fixture, random_steps(lengths, random), 8, isa, rows) && same;
    // A twin of the longest sequence that finds some whole blocks of it in the cache.
    int found = int(random() % unsigned(lengths.back() / kBlockTokens)) + 1;
    fixture.contents[size_t(twin)] = fixture.contents[size_t(shared)];
    std::copy_n(fixture.tables[size_t(shared)].begin(), found, fixture.tables[size_t(twin)].begin());
    int rest = lengths.back() - found * kBlockTokens;
    if (rest > 0) same = run(fixture, {{{twin, found * kBlockTokens, rest}}}, 2, isa, rows) && same;
    if (error <= allowed && same) continue;
    good = false;
    std::printf("FAIL %s %s heads %d/%d x %d window %d: error %.2e of %.1e allowed, bits %s\n", name_of(isa),
                dtype == DType::f32 ? "f32" : "bf16", shape.heads, shape.kv_heads, shape.head_dim, shape.window, error, allowed,
                same ? "same" : "DIFFER");
  }
  return good;
}

}  // namespace
}  // namespace oarlock::cpu

int main(int argc, char** argv) {
  using namespace oarlock;
  const int shapes = argc > 1 ? std::atoi(argv[1]) : 16;
  std::mt19937 random(argc > 2 ? uint32_t(std::atoi(argv[2])) : 1u);
  for (Isa isa : cpu::kIsas)
    if (isa > machine_isa())
      std::printf("attention: %s is not checked: this machine goes up to %s\n", name_of(isa), name_of(machine_isa()));
  int failed = 0;
  for (int number = 0; number < shapes; ++number) failed += cpu::check_shape(number, random) ? 0 : 1;
  std::printf("attention: %d of %d shapes agree\n", shapes - failed, shapes);
  return failed == 0 ? 0 : 1;
}
