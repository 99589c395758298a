// Speed of attention beside its floor: the larger of the bytes of keys and values over this machine's read bandwidth and the
// products' FLOP (of visible keys) over its bf16 rate. Several layers' caches are passed in turn, so that decode reads memory
// and not a processor cache. Usage: attention_bench [threads] [part of a case's name].
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "cpu/attention/fixture.h"
#include "cpu/gemm/machine.h"
#include "cpu/gemm/memory.h"

namespace oarlock::cpu {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Case {
  const char* name;
  int heads, kv_heads, head_dim, sequences, queries, context;
};

void bench(const Case& c, ThreadPool& pool, double read_rate, double product_rate) {
  AttentionShape shape{c.heads, c.kv_heads, c.head_dim, 1 / std::sqrt(float(c.head_dim)), 0};
  std::vector<int> lengths(size_t(c.sequences), c.context);
  Fixture fixture(shape, DType::bf16, false, lengths, 1);
  std::vector<Chunk> last;
  for (int s = 0; s < c.sequences; ++s) last.push_back({s, c.context - c.queries, c.queries});
  Fixture::Step step = fixture.make_step(last);
  fixture.rope(Rope(pool), step);  // turns the rows into queries
  const size_t layer = fixture.keys.size();
  const size_t layers = std::max<size_t>(2, std::min<size_t>(size_t(480) << 20, size_t(64) * layer) / (2 * layer));
  const Piece memory = allocate_piece(layers * 2 * layer);
  auto* numbers = reinterpret_cast<bf16*>(memory.data);
  for (size_t i = 0; i < layers * layer; ++i) numbers[i] = to_bf16(float(int(i * 2654435761u >> 20 & 1023) - 512) / 256);
  Attention attention(pool);
  attention.reserve({step.batch.tokens, c.sequences, c.heads, c.kv_heads, c.head_dim, c.context});
  auto run_layer = [&](size_t l) {
    uint8_t* keys = memory.data + l * 2 * layer;
    attention.attention(step.out_tensor, step.query_tensor, shape, {keys, keys + layer}, step.batch);
  };
  std::vector<double> times;
  auto begin = Clock::now();
  for (size_t round = 0; times.size() < layers || (seconds_since(begin) < 1 && round < 40 * layers); ++round) {
    auto start = Clock::now();
    run_layer(round % layers);
    times.push_back(seconds_since(start));
  }
  std::nth_element(times.begin(), times.begin() + long(times.size() / 4), times.end());
  double time = times[times.size() / 4];  // the lower quartile: other work on the machine only adds
  double visible = 0;                     // (query, key) pairs
  for (int q = 0; q < c.queries; ++q) visible += c.context - q;
  double flop = 4.0 * visible * c.sequences * c.heads * c.head_dim;
  double bytes = 2.0 * c.sequences * c.context * c.kv_heads * c.head_dim * 2;
  double floor = std::max(bytes / read_rate, flop / product_rate);
  std::printf("%-28s %9.1f us a layer, floor %8.1f us: %3.0f %%  (%.1f GB/s, %.0f GFLOP/s)\n", c.name, time * 1e6, floor * 1e6,
              100 * floor / time, bytes / time / 1e9, flop / time / 1e9);
}

}  // namespace
}  // namespace oarlock::cpu

int main(int argc, char** argv) {
  using namespace oarlock;
  const char* wanted = argc > 2 ? argv[2] : "";
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : int(std::thread::hardware_concurrency()));
  const double read_rate = cpu::read_bandwidth(pool, 0.3);
  const double product_rate = cpu::matrix_rate(cpu::MatrixKind::bf16, pool, 0.2);
  std::printf("attention, %s, %d threads; reads %.1f GB/s, bf16 products %.0f GFLOP/s\n", name_of(selected_isa()), pool.size(),
              read_rate / 1e9, product_rate / 1e9);
  const cpu::Case cases[] = {
      {"decode 9/3x64, 64 x 320", 9, 3, 64, 64, 1, 320},     {"decode 9/3x64, 8 x 320", 9, 3, 64, 8, 1, 320},
      {"decode 9/3x64, 1 x 256", 9, 3, 64, 1, 1, 256},       {"decode 9/3x64, 1 x 8192", 9, 3, 64, 1, 1, 8192},
      {"decode 32/4x64, 8 x 1024", 32, 4, 64, 8, 1, 1024},   {"decode 32/8x128, 8 x 2048", 32, 8, 128, 8, 1, 2048},
      {"prefill 9/3x64, 1024", 9, 3, 64, 1, 1024, 1024},     {"prefill 32/4x64, 1024", 32, 4, 64, 1, 1024, 1024},
      {"prefill 32/8x128, 2048", 32, 8, 128, 1, 2048, 2048}, {"prefill 9/3x64, 8 x 256", 9, 3, 64, 8, 256, 256},
  };
  for (const cpu::Case& c : cases)
    if (std::strstr(c.name, wanted) != nullptr) cpu::bench(c, pool, read_rate, product_rate);
}
