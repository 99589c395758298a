// A pool of compute threads for fork-join loops: the caller takes part, workers spin briefly for the next loop and then
// sleep on a futex, so that an idle server uses no core.
//
// A loop ends when its items are done, not when every worker has come: on few cores the server's other processes take one
// for a moment now and then, and a worker that waits for its turn must not hold up the others. Those that come too late
// find the loop closed; only one that lost its core in the middle of an item is waited for.
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
    std::atomic<int> missing{size_};
    share([&](int thread) {
      missing.fetch_sub(1, std::memory_order_relaxed);
      if (thread == 0) {  // until it returns, the others may come
        while (missing.load(std::memory_order_relaxed) > 0) std::this_thread::yield();
      }
      body(thread);
    });
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
    share([&](int thread) {
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
    share([&](int thread) {
      for (int turn = 0; turn < size_; ++turn) {
        const int part = (thread + turn) % size_;
        const int64_t end = start(part + 1);
        for (int64_t item; (item = parts_[size_t(part)].next.fetch_add(1, std::memory_order_relaxed)) < end;)
          body(item, thread);
      }
    });
  }

  // No loop will come for a while: few workers sleep at once, so that other processes may have their cores. Of many, some core
  // is free for them anyway, and to wake them all takes longer.
  void rest() { resting_.store(size_ <= kFewThreads, std::memory_order_relaxed); }

 private:
  static constexpr int kFewThreads = 4;
  using Erased = void (*)(void*, int);

  // Calls body(0) here and body(thread) on each worker that comes before that has returned.
  template <typename Body>
  void share(Body&& body) {
    share_erased([](void* context, int thread) { (*static_cast<std::remove_reference_t<Body>*>(context))(thread); },
                 const_cast<void*>(static_cast<const void*>(&body)));
  }
  void share_erased(Erased body, void* context);
  void work(int thread);
  void take_part(uint32_t& last, int thread);

  const int size_;
  const int spin_us_;
  Erased body_ = nullptr;  // these two of the open loop; whoever is inside may read them
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> loop_{0};    // its number, whether it is open, and how many workers are inside
  alignas(64) std::atomic<uint32_t> asleep_{0};  // 1 when a worker may sleep on loop_
  alignas(64) std::atomic<uint32_t> caller_sleeps_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  struct alignas(64) Part {
    std::atomic<int64_t> next{0};
  };
  std::vector<Part> parts_;  // of for_each_near, one a thread
  std::atomic<bool> resting_{false};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace oarlock
