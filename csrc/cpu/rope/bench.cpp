// Speed of rotation and cache writes beside their floor, the bytes touched over the read bandwidth. Usage: rope_bench
// [threads].
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "cpu/attention/fixture.h"
#include "cpu/gemm/machine.h"

int main(int argc, char** argv) {
  using namespace oarlock;
  using Clock = std::chrono::steady_clock;
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : int(std::thread::hardware_concurrency()));
  const double read_rate = cpu::read_bandwidth(pool, 0.2);
  std::printf("rope, %s, %d threads; reads %.1f GB/s\n", name_of(selected_isa()), pool.size(), read_rate / 1e9);
  const AttentionShape shapes[] = {{9, 3, 64, 0.125f, 0}, {32, 8, 128, 0.088f, 0}};
  for (const AttentionShape& shape : shapes) {
    for (bool decode : {true, false}) {
      std::vector<int> lengths(decode ? 64 : 1, decode ? 100 : 1024);
      cpu::Fixture fixture(shape, DType::bf16, false, lengths, 1);
      std::vector<cpu::Chunk> chunks;
      for (int s = 0; s < int(lengths.size()); ++s) chunks.push_back({s, decode ? 99 : 0, decode ? 1 : lengths[size_t(s)]});
      cpu::Fixture::Step step = fixture.make_step(chunks);
      cpu::Rope rope(pool);
      std::vector<double> times;
      for (int repeat = 0; repeat < 100; ++repeat) {
        auto start = Clock::now();
        fixture.rope(rope, step);
        times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
      }
      std::nth_element(times.begin(), times.begin() + 25, times.end());
      double floor = 6.0 * double(step.qkv.size()) / read_rate;  // every float read once, every bf16 written once
      std::printf("%d/%d x %3d, %4d tokens  %8.2f us, floor %8.2f us: %3.0f %%\n", shape.heads, shape.kv_heads, shape.head_dim,
                  step.batch.tokens, times[25] * 1e6, floor * 1e6, 100 * floor / times[25]);
    }
  }
}
