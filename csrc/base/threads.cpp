#include "base/threads.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace oarlock {
namespace {

using Clock = std::chrono::steady_clock;

// The parts of loop_.
constexpr uint32_t kInside = (1 << 11) - 1, kOpen = 1 << 11, kNumber = 1 << 12;
constexpr uint32_t number_of(uint32_t loop) { return loop / kNumber; }

template <typename T>
void futex_wait(std::atomic<T>& word, T expected) {
  static_assert(sizeof(T) == 4, "a futex is 32 bits");
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, uint32_t(expected), nullptr, nullptr, 0);
}

template <typename T>
void futex_wake_all(std::atomic<T>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
}

// Polls until ready() or the time is up; true when ready.
template <typename Ready>
bool spin(int microseconds, Ready&& ready) {
  auto deadline = Clock::now() + std::chrono::microseconds(microseconds);
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      _mm_pause();
    }
  } while (Clock::now() < deadline);
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(int threads, int spin_us) : size_(threads), spin_us_(spin_us), parts_(size_t(std::max(threads, 0))) {
  require(threads >= 1 && threads <= 1024, "threads must be from 1 to 1024, not ", threads);
  for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  loop_.fetch_add(kNumber);
  futex_wake_all(loop_);
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::share_erased(Erased body, void* context) {
  if (size_ == 1) return body(context, 0);
  body_ = body;
  context_ = context;
  resting_.store(false, std::memory_order_relaxed);
  loop_.fetch_add(kNumber + kOpen, std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst) && asleep_.exchange(0, std::memory_order_seq_cst)) futex_wake_all(loop_);
  body(context, 0);
  loop_.fetch_and(~kOpen, std::memory_order_seq_cst);
  auto alone = [&] { return (loop_.load(std::memory_order_seq_cst) & kInside) == 0; };
  if (spin(spin_us_, alone)) return;
  for (;;) {
    caller_sleeps_.store(1, std::memory_order_seq_cst);
    if (alone()) break;
    futex_wait(caller_sleeps_, uint32_t(1));
  }
  caller_sleeps_.store(0, std::memory_order_relaxed);
}

void ThreadPool::work(int thread) {
  uint32_t last = 0;  // the loop that this worker has been through
  while (!stop_.load(std::memory_order_relaxed)) {
    uint32_t loop = 0;
    auto called = [&] {
      loop = loop_.load(std::memory_order_acquire);
      return ((loop & kOpen) && number_of(loop) != last) || stop_.load(std::memory_order_relaxed);
    };
    spin(spin_us_, [&] { return called() || resting_.load(std::memory_order_relaxed); });
    while (!called()) {
      asleep_.store(1, std::memory_order_seq_cst);
      if (called()) break;
      futex_wait(loop_, loop);
    }
    take_part(last, thread);
  }
}

// Through the loop that is open now, if one still is.
void ThreadPool::take_part(uint32_t& last, int thread) {
  uint32_t entered = loop_.fetch_add(1, std::memory_order_seq_cst);
  if ((entered & kOpen) && number_of(entered) != last) {
    last = number_of(entered);
    body_(context_, thread);
  }
  uint32_t before = loop_.fetch_sub(1, std::memory_order_seq_cst);
  if ((before & (kInside | kOpen)) == 1 && caller_sleeps_.load(std::memory_order_seq_cst) &&
      caller_sleeps_.exchange(0, std::memory_order_seq_cst))
    futex_wake_all(caller_sleeps_);
}

}  // namespace oarlock
