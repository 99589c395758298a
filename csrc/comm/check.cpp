// Ranks as processes of this machine: sums and gathers against what they must be, what happens when a rank dies or stops,
// and, by `comm_check bench`, what an exchange costs.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "comm/ucx_comm.h"

namespace oarlock {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kMostRanks = 4;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Where the ranks find each other: memory that the forked processes share.
struct Board {
  std::atomic<int> posted{0};
  size_t bytes[kMostRanks] = {};
  char address[kMostRanks][4096] = {};
};

void meet(MemberComm& comm, Board& board) {
  const std::string& own = comm.address();
  std::memcpy(board.address[comm.rank()], own.data(), own.size());
  board.bytes[comm.rank()] = own.size();
  ++board.posted;
  while (board.posted.load() < comm.world()) usleep(1000);
  std::vector<std::string> addresses, names;
  for (int r = 0; r < comm.world(); ++r) {
    addresses.emplace_back(board.address[r], board.bytes[r]);
    names.push_back(concat("process ", r));
  }
  comm.connect(addresses, names);
}

// Runs body as every rank in a process of its own; true when all end with 0, or were meant not to.
bool in_ranks(int world, double time_limit, const std::function<int(Comm&)>& body, int meant_to_die = -1) {
  void* memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Board& board = *new (memory) Board;
  std::vector<pid_t> children;
  for (int r = 0; r < world; ++r) {
    pid_t child = fork();
    if (child == 0) {
      alarm(60);
      int status = 1;
      try {
        const char* library = std::getenv("OARLOCK_UCX_LIBRARY");
        auto comm = make_ucx_comm(r, world, time_limit, library == nullptr ? "" : library);
        meet(*comm, board);
        status = body(*comm);
        if (status == 0 && meant_to_die < 0) comm->barrier();
      } catch (const std::exception& error) {
        std::printf("rank %d: %s\n", r, error.what());
      }
      std::fflush(stdout);
      _exit(status);
    }
    children.push_back(child);
  }
  bool good = true;
  for (int r = world - 1; r >= 0; --r) {
    if (r == meant_to_die) continue;
    int status = 0;
    waitpid(children[size_t(r)], &status, 0);
    good &= WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  if (meant_to_die >= 0) {
    kill(children[size_t(meant_to_die)], SIGKILL);
    waitpid(children[size_t(meant_to_die)], nullptr, 0);
  }
  munmap(memory, sizeof(Board));
  return good;
}

float value_of(int rank, int64_t i, int round) { return std::sin(float(i % 977) + float(31 * rank + round)) * float(rank + 1); }

int sums(Comm& comm) {
  std::mt19937 random(7);
  for (int round = 0; round < 60; ++round) {
    int64_t count = int64_t(random() % (round % 3 == 0 ? 200000 : 3000));
    const size_t size = size_t(count);
    std::vector<float> values(size), wanted(size);
    for (int64_t i = 0; i < count; ++i) {
      values[size_t(i)] = value_of(comm.rank(), i, round);
      wanted[size_t(i)] = value_of(0, i, round);
      for (int r = 1; r < comm.world(); ++r) wanted[size_t(i)] += value_of(r, i, round);
    }
    comm.all_reduce(values.data(), count);
    if (values != wanted) {
      std::printf("rank %d: all_reduce of %ld is wrong\n", comm.rank(), long(count));
      return 1;
    }
  }
  return 0;
}

int gathers(Comm& comm) {
  for (int round = 0; round < 40; ++round) {
    std::vector<size_t> bytes;
    std::vector<char> wanted;
    for (int r = 0; r < comm.world(); ++r) {
      bytes.push_back(size_t((r * 7919 + round * 104729) % 50000));
      wanted.insert(wanted.end(), bytes.back(), char('a' + r));
    }
    std::vector<char> mine(bytes[size_t(comm.rank())], char('a' + comm.rank())), all(wanted.size(), 0);
    comm.all_gather(mine.data(), all.data(), bytes);
    if (all != wanted) return 2;
    std::fill(all.begin(), all.end(), char(0));
    comm.gather(mine.data(), all.data(), bytes);
    if (comm.rank() == 0 && all != wanted) return 3;
    size_t length = size_t(round * 1000);
    std::vector<char> told(40000, comm.rank() == 0 ? char(round) : char(0));
    if (comm.broadcast(told.data(), length, told.size()) != length) return 4;
    for (size_t i = 0; i < length; ++i)
      if (told[i] != char(round)) return 5;
    comm.barrier();
  }
  return 0;
}

// Every other rank's call must end by CommError in time.
int peer_leaves(Comm& comm, int victim, int signal, double at_most) {
  std::vector<float> values(1000, 1.0f);
  for (int i = 0; i < 10; ++i) comm.all_reduce(values.data(), 1000);
  if (comm.rank() == victim) raise(signal);
  auto start = Clock::now();
  try {
    for (;;) comm.all_reduce(values.data(), 1000);
  } catch (const CommError& error) {
    double taken = seconds_since(start);
    bool named = std::string(error.what()).find("rank ") != std::string::npos;
    if (taken < at_most && named) return 0;
    std::printf("rank %d: %s after %.1f s\n", comm.rank(), error.what(), taken);
  }
  return 1;
}

// Rank 0's wait, and every later call, must end by an abort from another thread.
int aborts(Comm& comm) {
  if (comm.rank() != 0) return usleep(2000000);  // it never comes
  std::thread other([&] {
    usleep(300000);
    comm.abort("told to stop");
  });
  auto ends = [&](const std::function<void()>& call) {
    try {
      call();
    } catch (const CommError&) {
      return true;
    }
    return false;
  };
  auto start = Clock::now();
  const bool waited = ends([&] { comm.barrier(); }) && seconds_since(start) < 2;
  other.join();
  char word = 0;
  return waited && ends([&] { comm.broadcast(&word, 1, 1); }) ? 0 : 1;
}

// An abort before a call that need not wait.
int aborts_before(Comm& comm) {
  if (comm.rank() != 0) return usleep(500000);
  comm.abort("told to stop");
  char word = 0;
  try {
    comm.broadcast(&word, 1, 1);
  } catch (const CommError& error) {
    return std::string(error.what()).find("told to stop") != std::string::npos ? 0 : 1;
  }
  return 1;
}

int bench(Comm& comm) {
  for (int64_t bytes : {4, 2048, 18 << 10, 256 << 10, 4 << 20}) {
    std::vector<float> values(size_t(bytes / 4), 0.0f);
    const int rounds = bytes > 100000 ? 60 : 2000;
    std::vector<double> times;
    for (int i = 0; i < rounds; ++i) {
      auto start = Clock::now();
      comm.all_reduce(values.data(), bytes / 4);
      times.push_back(seconds_since(start) * 1e6);
    }
    std::sort(times.begin(), times.end());
    if (comm.rank() == 0)
      std::printf("all_reduce of %8ld bytes, %d ranks: %8.1f us median, %8.1f us p99\n", long(bytes), comm.world(),
                  times[times.size() / 2], times[times.size() * 99 / 100]);
  }
  return 0;
}

int check() {
  int failures = 0;
  auto report = [&](const char* what, bool good) {
    std::printf("%-40s %s\n", what, good ? "ok" : "FAILED");
    std::fflush(stdout);
    failures += !good;
  };
  for (int world : {1, 2, 3, 4}) {
    report(concat("sums of ", world, " ranks").c_str(), in_ranks(world, 20, sums));
    report(concat("gathers of ", world, " ranks").c_str(), in_ranks(world, 20, gathers));
  }
  report("a rank is killed", in_ranks(3, 20, [](Comm& comm) { return peer_leaves(comm, 1, SIGKILL, 5); }, 1));
  report("a rank stops", in_ranks(3, 2, [](Comm& comm) { return peer_leaves(comm, 1, SIGSTOP, 5); }, 1));
  report("an abort ends a wait", in_ranks(2, 20, aborts, 1));
  report("an abort ends what follows", in_ranks(2, 20, aborts_before, 1));
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace oarlock

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "bench") {
    for (int world : {2, 4})
      if (!oarlock::in_ranks(world, 20, oarlock::bench)) return 1;
    return 0;
  }
  return oarlock::check();
}
