// Speed of the norm beside its floor, the bytes it touches over the read bandwidth. Rows of a decode step stay in the caches,
// where it may pass the floor of memory. Usage: norm_bench [threads].
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/gemm/machine.h"
#include "cpu/norm/norm.h"

int main(int argc, char** argv) {
  using namespace oarlock;
  using Clock = std::chrono::steady_clock;
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : int(std::thread::hardware_concurrency()));
  const double read_rate = cpu::read_bandwidth(pool, 0.2);
  std::printf("norm, %s, %d threads; reads %.1f GB/s\n", name_of(selected_isa()), pool.size(), read_rate / 1e9);
  for (int64_t columns : {576, 2048}) {
    for (int64_t rows : {1, 64, 1024}) {
      const size_t count = size_t(rows * columns);
      std::vector<float> residual(count, 0.5f), weight(size_t(columns), 1.0f);
      std::vector<bf16> delta(count, to_bf16(1e-3f)), out(count);
      Tensor delta_rows{delta.data(), DType::bf16, rows, columns, columns};
      std::vector<double> times;
      for (int repeat = 0; repeat < 200; ++repeat) {
        auto start = Clock::now();
        cpu::Norm(pool).add_norm({out.data(), DType::bf16, rows, columns, columns},
                                 {residual.data(), DType::f32, rows, columns, columns}, &delta_rows, weight.data(), 1e-5f);
        times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
      }
      std::nth_element(times.begin(), times.begin() + 50, times.end());
      double floor = double(count) * 12 / read_rate;  // residual read and written, delta read, out written
      std::printf("%5lld x %4lld  %8.2f us, floor %8.2f us: %3.0f %%\n", static_cast<long long>(rows),
                  static_cast<long long>(columns), times[50] * 1e6, floor * 1e6, 100 * floor / times[50]);
    }
  }
}
