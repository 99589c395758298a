// A pool of compute threads for fork-join loops: the caller takes part, workers spin briefly for the next loop and then
// sleep on a futex, so that an idle server uses no core.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace oarlock {

class ThreadPool {
 public:
  // threads >= 1 counts the caller; spin_us is how long an idle worker polls before it sleeps.
  explicit ThreadPool(int threads, int spin_us = 50);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Calls body(thread) once on every thread, thread in [0, size()); returns when all have returned. Not reentrant.
  template <typename Body>
  void run(Body&& body) {
    run_erased([](void* context, int thread) { (*static_cast<std::remove_reference_t<Body>*>(context))(thread); },
               const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Calls body(item, thread) for every item in [0, items). Items are handed out one by one, so a thread that lost its core
  // delays only the item it holds. Which thread runs an item must not change the item's result.
  template <typename Body>
  void for_each(int64_t items, Body&& body) {
    if (items <= 0) return;
    if (size_ == 1 || items == 1) {
      for (int64_t item = 0; item < items; ++item) body(item, 0);
      return;
    }
    next_.store(0, std::memory_order_relaxed);
    run([&](int thread) {
      for (int64_t item; (item = next_.fetch_add(1, std::memory_order_relaxed)) < items;) body(item, thread);
    });
  }

  // The same, but thread t begins with the t-th part of the items and helps the others when it is done: loops over the same
  // rows one after the other then find them in the core's own cache.
  template <typename Body>
  void for_each_near(int64_t items, Body&& body) {
    if (items <= 0) return;
    if (size_ == 1 || items == 1) {
      for (int64_t item = 0; item < items; ++item) body(item, 0);
      return;
    }
    auto start = [&](int part) { return items * part / size_; };
    for (int part = 0; part < size_; ++part) parts_[size_t(part)].next.store(start(part), std::memory_order_relaxed);
    run([&](int thread) {
      for (int turn = 0; turn < size_; ++turn) {
        const int part = (thread + turn) % size_;
        const int64_t end = start(part + 1);
        for (int64_t item; (item = parts_[size_t(part)].next.fetch_add(1, std::memory_order_relaxed)) < end;)
          body(item, thread);
      }
    });
  }

 private:
  using Erased = void (*)(void*, int);
  void run_erased(Erased body, void* context);
  void work(int thread);

  const int size_;
  const int spin_us_;
  Erased body_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int32_t> sleepers_{0};
  alignas(64) std::atomic<uint32_t> pending_{0};
  alignas(64) std::atomic<int32_t> caller_sleeps_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  struct alignas(64) Part {
    std::atomic<int64_t> next{0};
  };
  std::vector<Part> parts_;  // of for_each_near, one a thread
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace oarlock
