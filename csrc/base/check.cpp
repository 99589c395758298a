// threads_check: loops of every kind and length on pools of several sizes; each item is done once, everything that a loop has
// written is seen after it, and `run` reaches every thread, whether workers spin, sleep or compete for cores.
// Usage: threads_check [loops] [seed].
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "base/threads.h"

namespace oarlock {
namespace {

// One loop of `items`; false when an item was not done once, or by a thread that the pool doesn't have.
bool check_loop(ThreadPool& pool, int64_t items, bool near) {
  std::vector<int> done(size_t(items), 0);  // plain: the pool alone orders these writes before our reads
  std::atomic<bool> known{true};
  auto body = [&](int64_t item, int thread) {
    ++done[size_t(item)];
    if (thread < 0 || thread >= pool.size()) known = false;
  };
  near ? pool.for_each_near(items, body) : pool.for_each(items, body);
  for (int count : done) known = known && count == 1;
  return known;
}

bool check_run(ThreadPool& pool) {
  std::vector<int> visits(size_t(pool.size()), 0);
  pool.run([&](int thread) { ++visits[size_t(thread)]; });
  for (int count : visits)
    if (count != 1) return false;
  return true;
}

bool check_pool(int threads, int spin_us, int loops, std::mt19937& random) {
  ThreadPool pool(threads, spin_us);
  for (int number = 0; number < loops; ++number) {
    const uint32_t dice = random();
    const bool good = dice % 16 == 0 ? check_run(pool) : check_loop(pool, dice / 16 % 50, dice / 1024 % 2 != 0);
    if (!good) {
      std::printf("FAIL loop %d of %d threads that spin for %d us\n", number, threads, spin_us);
      return false;
    }
    if (dice / 2048 % 8 == 0) pool.rest();
    if (dice / 16384 % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

}  // namespace
}  // namespace oarlock

int main(int argc, char** argv) {
  const int loops = argc > 1 ? std::atoi(argv[1]) : 3000;
  std::mt19937 random(argc > 2 ? uint32_t(std::atoi(argv[2])) : 1u);
  const int cores = int(std::thread::hardware_concurrency());
  int failed = 0, pools = 0;
  for (int threads : {1, 2, 3, cores + 2}) {
    for (int spin_us : {0, 50}) {
      ++pools;
      failed += oarlock::check_pool(threads, spin_us, loops, random) ? 0 : 1;
    }
  }
  std::printf("threads: %d of %d pools run every item once\n", pools - failed, pools);
  return failed == 0 ? 0 : 1;
}
