// Checks rotation, per-head norm and cache writes on every instruction set that this machine runs: within a tolerance of the
// plain reference, values and zeroed places exactly, and bit for bit the same whatever the chunks and threads.
// Usage: rope_check [shapes] [seed].
#include <cstdio>
#include <cstdlib>

#include "cpu/attention/fixture.h"

namespace oarlock::cpu {
namespace {

constexpr Isa kIsas[] = {Isa::avx2, Isa::avx512, Isa::avx512_bf16};

void reference_rope(Fixture& fixture, Fixture::Step& step) {
  const int64_t element = size_of(fixture.dtype);
  for (int t = 0; t < step.batch.tokens; ++t) {
    int slot = step.slots[size_t(t)], written = 1;
    while (t + written < step.batch.tokens && step.slots[size_t(t + written)] == slot + written &&
           (slot + written) % kBlockTokens)
      ++written;
    int64_t block = kv_head_start(slot / kBlockTokens, fixture.shape.kv_heads, 0, fixture.shape.head_dim) * element;
    reference::rope_token(
        {step.qkv.data() + int64_t(t) * fixture.qkv_columns(), fixture.dtype, fixture.shape,
         fixture.head_norm ? fixture.q_norm.data() : nullptr, fixture.head_norm ? fixture.k_norm.data() : nullptr, 1e-6f,
         fixture.rotary.data() + int64_t(step.positions[size_t(t)]) * fixture.shape.head_dim, fixture.keys.data() + block,
         fixture.values.data() + block, slot % kBlockTokens, slot % kBlockTokens == 0 ? written : kBlockTokens});
  }
}

// Elements that differ in more than rounding; NaN agrees with NaN, which is memory that nobody wrote.
int64_t differences(const std::vector<char>& a, const std::vector<char>& b, DType dtype) {
  int64_t count = 0;
  const float allowed = dtype == DType::f32 ? 4e-6f : 1.0f / 128;
  for (size_t i = 0; i < a.size() / size_t(size_of(dtype)); ++i) {
    float x = element(a, dtype, i), y = element(b, dtype, i);
    bool close = (std::isnan(x) && std::isnan(y)) || std::abs(x - y) <= allowed * std::max(1.0f, std::abs(y));
    count += close ? 0 : 1;
  }
  return count;
}

std::vector<char> bytes_of(const std::vector<float>& values) {
  const char* bytes = reinterpret_cast<const char*>(values.data());
  return {bytes, bytes + values.size() * sizeof(float)};
}

bool check_shape(int number, std::mt19937& random) {
  constexpr int kHeadDims[] = {64, 128, 80, 96, 16, 256};
  AttentionShape shape;
  shape.head_dim = kHeadDims[number % 6];
  shape.kv_heads = 1 + int(random() % 3);
  shape.heads = shape.kv_heads * (1 + int(random() % 4));
  DType dtype = random() % 3 == 0 ? DType::f32 : DType::bf16;
  std::vector<int> lengths = {1 + int(random() % 200), 1 + int(random() % 200), 1};
  bool head_norm = random() % 2 == 0;
  uint32_t seed = uint32_t(random());
  bool good = true;
  for (Isa isa : kIsas) {
    if (isa > machine_isa()) continue;
    auto make = [&] { return Fixture(shape, dtype, head_norm, lengths, seed); };
    std::vector<Chunk> whole;
    for (int s = 0; s < 3; ++s) whole.push_back({s, 0, lengths[size_t(s)]});
    Fixture expected = make(), at_once = make(), chunked = make();
    Fixture::Step plain = expected.make_step(whole), fast = at_once.make_step(whole);
    reference_rope(expected, plain);
    ThreadPool one(1), three(3);
    at_once.rope(Rope(one, isa), fast);
    std::vector<int> done(3, 0);
    bool same = true;
    while (done != lengths) {
      std::vector<Chunk> chunks;
      for (int s = 0; s < 3; ++s) {
        int count = std::min<int>(lengths[size_t(s)] - done[size_t(s)], int(random() % 40));
        if (count > 0) chunks.push_back({s, done[size_t(s)], count});
        done[size_t(s)] += count;
      }
      if (chunks.empty()) continue;
      Fixture::Step step = chunked.make_step(chunks);
      chunked.rope(Rope(three, isa), step);
      size_t row = size_t(shape.heads * shape.head_dim * size_of(dtype)), stride = size_t(chunked.qkv_columns());
      size_t token = 0;
      for (const Chunk& chunk : chunks) {
        size_t first = size_t(chunk.begin);
        for (int s = 0; s < chunk.sequence; ++s) first += size_t(lengths[size_t(s)]);
        for (int i = 0; i < chunk.count; ++i, ++token)
          same = same && std::memcmp(&step.qkv[token * stride], &fast.qkv[(first + size_t(i)) * stride], row) == 0;
      }
    }
    same = same && chunked.keys == at_once.keys && chunked.values == at_once.values && at_once.values == expected.values;
    int64_t wrong =
        differences(bytes_of(fast.qkv), bytes_of(plain.qkv), dtype) + differences(at_once.keys, expected.keys, dtype);
    if (wrong == 0 && same) continue;
    good = false;
    std::printf("FAIL %s heads %d/%d x %d: %lld elements off, bits %s\n", name_of(isa), shape.heads, shape.kv_heads,
                shape.head_dim, static_cast<long long>(wrong), same ? "same" : "DIFFER");
  }
  return good;
}

}  // namespace
}  // namespace oarlock::cpu

int main(int argc, char** argv) {
  using namespace oarlock;
  const int shapes = argc > 1 ? std::atoi(argv[1]) : 24;
  std::mt19937 random(argc > 2 ? uint32_t(std::atoi(argv[2])) : 1u);
  for (Isa isa : cpu::kIsas)
    if (isa > machine_isa())
      std::printf("rope: %s is not checked: this machine goes up to %s\n", name_of(isa), name_of(machine_isa()));
  int failed = 0;
  for (int number = 0; number < shapes; ++number) failed += cpu::check_shape(number, random) ? 0 : 1;
  std::printf("rope: %d of %d shapes agree\n", shapes - failed, shapes);
  return failed == 0 ? 0 : 1;
}
