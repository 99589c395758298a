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
  generation_.fetch_add(1);
  futex_wake_all(generation_);
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run_erased(Erased body, void* context) {
  if (size_ == 1) return body(context, 0);
  body_ = body;
  context_ = context;
  pending_.store(uint32_t(size_ - 1), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) futex_wake_all(generation_);
  body(context, 0);
  auto done = [&] { return pending_.load(std::memory_order_acquire) == 0; };
  if (spin(spin_us_, done)) return;
  caller_sleeps_.store(1, std::memory_order_seq_cst);
  for (uint32_t left; (left = pending_.load(std::memory_order_seq_cst)) != 0;) futex_wait(pending_, left);
  caller_sleeps_.store(0, std::memory_order_relaxed);
}

void ThreadPool::work(int thread) {
  for (uint32_t seen = 0;;) {
    auto called = [&] { return generation_.load(std::memory_order_acquire) != seen; };
    if (!spin(spin_us_, called)) {
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      while (!called()) futex_wait(generation_, seen);
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    body_(context_, thread);
    if (pending_.fetch_sub(1, std::memory_order_seq_cst) == 1 && caller_sleeps_.load(std::memory_order_seq_cst))
      futex_wake_all(pending_);
  }
}

}  // namespace oarlock
