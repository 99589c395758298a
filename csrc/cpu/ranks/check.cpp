// Checks that ranks which hold a part of the vocabulary each draw what one sampler draws from the whole: random logits and
// settings over random parts, with the ranks as threads. A token may differ where the draw or a filter falls on an edge within
// rounding: under 1 in 500. Prints what is exchanged, and `ranks_check bench` what it costs a row to tell a share.
// Usage: ranks_check [batches] [seed].
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/ranks/ranks.h"
#include "cpu/sampler/random_rows.h"

namespace oarlock::cpu {
namespace {

// Threads that wait for each other, and see what each of them brings.
class Meeting {
 public:
  explicit Meeting(int world) : brought(size_t(world)), world_(world) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const long round = round_;
    if (++here_ == world_) {
      here_ = 0, ++round_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [&] { return round_ != round; });
    }
  }

  struct Bytes {
    const void* data;
    size_t count;
  };
  std::vector<Bytes> brought;
  size_t sent = 0;  // bytes, from one rank to another

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  const int world_;
  int here_ = 0;
  long round_ = 0;
};

class ThreadComm : public Comm {
 public:
  ThreadComm(Meeting& meeting, int rank, int world) : meeting_(meeting), rank_(rank), world_(world) {}
  int rank() const override { return rank_; }
  int world() const override { return world_; }
  void all_reduce(float*, int64_t) override { throw DeviceError("not wanted here"); }
  void all_gather(const void*, void*, const std::vector<size_t>&) override { throw DeviceError("not wanted here"); }
  void barrier() override { meeting_.wait(); }
  void check() override {}
  double time_limit() const override { return 60; }
  void set_patience(double) override {}
  void abort(const std::string&) override {}

  void gather(const void* mine, void* all, const std::vector<size_t>& bytes) override {
    meeting_.brought[size_t(rank_)] = {mine, bytes[size_t(rank_)]};
    meeting_.wait();
    if (rank_ == 0) {
      char* into = static_cast<char*>(all);
      for (size_t r = 0; r < size_t(world_); into += bytes[r++]) {
        require(meeting_.brought[r].count == bytes[r], "rank ", r, " brings ", meeting_.brought[r].count, " bytes, not ",
                bytes[r]);
        std::memcpy(into, meeting_.brought[r].data, bytes[r]);
        if (r > 0) meeting_.sent += bytes[r];
      }
    }
    meeting_.wait();
  }

  size_t broadcast(void* data, size_t bytes, size_t capacity) override {
    if (rank_ == 0) meeting_.brought[0] = {data, bytes};
    meeting_.wait();
    const Meeting::Bytes told = meeting_.brought[0];
    require(told.count <= capacity, "a broadcast of ", told.count, " bytes; ", capacity, " fit");
    if (rank_ != 0) std::memcpy(data, told.data, told.count);
    if (rank_ == 0) meeting_.sent += told.count * size_t(world_ - 1);
    meeting_.wait();
    return told.count;
  }

 private:
  Meeting& meeting_;
  const int rank_, world_;
};

std::vector<int64_t> random_starts(std::mt19937& random, int64_t vocab, int world) {
  std::vector<int64_t> starts{0, vocab};
  for (int r = 1; r < world; ++r) starts.push_back(int64_t(random() % uint64_t(vocab + 1)));  // a part may be empty
  std::sort(starts.begin(), starts.end());
  return starts;
}

// Rows of which the likeliest token is all that is wanted, as PlanChannel marks them.
std::vector<uint8_t> plain_rows(const Settings& s, int rows) {
  std::vector<uint8_t> plain(static_cast<size_t>(rows));
  for (size_t r = 0; r < plain.size(); ++r) {
    plain[r] = s.temperature[r] == 0 && s.target[r] < 0 && s.top_logprobs[r] < 0 && s.mask_rows[r] < 0 &&
               s.history_starts[r] == s.history_starts[r + 1] && s.bias_starts[r] == s.bias_starts[r + 1];
  }
  return plain;
}

// What rank 0 draws; returns the bytes that were exchanged.
size_t sample_split(const std::vector<float>& logits, int rows, const std::vector<int64_t>& starts, const Sampling& sampling,
                    const std::vector<uint8_t>& plain, const Sampled& sampled) {
  const int world = int(starts.size()) - 1;
  const int64_t vocab = starts.back();
  Meeting meeting(world);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back([&, rank] {
      const int64_t first = starts[size_t(rank)], width = starts[size_t(rank) + 1] - first;
      std::vector<float> part(size_t(rows * width));
      for (int64_t r = 0; r < rows; ++r) std::copy_n(logits.begin() + r * vocab + first, width, part.begin() + r * width);
      ThreadPool pool(1 + rank % 2);
      Sampler sampler(pool);
      sampler.reserve(rows, vocab);
      Ranks ranks(std::make_shared<ThreadComm>(meeting, rank, world), starts, pool, sampler);
      ranks.reserve(rows);
      ranks.sample({part.data(), DType::f32, rows, width, width}, plain.data(), rank == 0 ? sampling : Sampling{},
                   rank == 0 ? sampled : Sampled{});
    });
  }
  for (std::thread& thread : threads) thread.join();
  return meeting.sent;
}

struct Kind {
  const char* name;
  float temperature, top_p, min_p;
  int32_t top_k;
};
constexpr Kind kKinds[] = {{"greedy", 0, 1, 0, 0},
                           {"temperature", 1, 1, 0, 0},
                           {"top_k 40", 1, 1, 0, 40},
                           {"top_p 0.9", 0.8f, 0.9f, 0, 0},
                           {"min_p 0.05", 1, 1, 0.05f, 0}};

// Bytes from one rank to another for a row of logits like a model's, of one kind.
void print_bytes(const Kind& kind) {
  constexpr int kRows = 32, kWorld = 2;
  constexpr int64_t kVocab = 49152;
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 2.2f);
  std::vector<float> logits(size_t(kRows * kVocab));
  for (float& x : logits) x = normal(random);
  std::vector<float> temperature(kRows, kind.temperature), top_p(kRows, kind.top_p), min_p(kRows, kind.min_p);
  std::vector<int32_t> top_k(kRows, kind.top_k), draw(kRows, 0);
  std::vector<uint64_t> seed(kRows);
  for (uint64_t& value : seed) value = random();
  Sampling sampling;
  sampling.temperature = temperature.data(), sampling.top_p = top_p.data(), sampling.min_p = min_p.data();
  sampling.top_k = top_k.data(), sampling.seed = seed.data(), sampling.draw = draw.data();
  Outcome got(kRows);
  const std::vector<uint8_t> plain(kRows, kind.temperature == 0);
  const size_t sent = sample_split(logits, kRows, {0, kVocab / 2, kVocab}, sampling, plain, got.sampled);
  std::printf("%-12s %9.0f bytes a row; all logits are %ld\n", kind.name, double(sent) / kRows, long(kVocab / kWorld * 4));
}

bool check_batch(std::mt19937& random, Tally& tally) {
  const int rows = 1 + int(random() % 12), world = 1 + int(random() % 5);
  const int64_t vocab = random_vocab(random);
  Settings settings;
  std::vector<float> logits = random_logits(random, rows, vocab, settings);
  if (random() % 2) {  // no edits, which gather
    for (auto* starts : {&settings.history_starts, &settings.bias_starts}) std::fill(starts->begin(), starts->end(), 0);
    std::fill(settings.mask_rows.begin(), settings.mask_rows.end(), -1);
  }
  Outcome expected(rows), got(rows);
  ThreadPool pool(2);
  Sampler sampler(pool);
  sampler.reserve(rows, vocab);
  sampler.sample({logits.data(), DType::f32, rows, vocab, vocab}, settings.from(0), expected.sampled);
  const std::vector<int64_t> starts = random_starts(random, vocab, world);
  sample_split(logits, rows, starts, settings.from(0), plain_rows(settings, rows), got.sampled);
  const int wrong = tally.wrong;
  compare(got, expected, settings, rows, tally);
  return tally.wrong == wrong;
}

void bench() {
  constexpr int64_t kVocab = 49152;
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 2.2f);
  std::vector<float> logits(static_cast<size_t>(kVocab));
  for (float& x : logits) x = normal(random);
  ThreadPool pool(1);
  Sampler sampler(pool);
  std::vector<uint8_t> memory(share_bytes(kMostShared));
  for (const Kind& kind : kKinds) {
    RowSettings row = row_settings({}, 0, kVocab);
    row.temperature = kind.temperature, row.top_p = kind.top_p, row.min_p = kind.min_p, row.top_k = kind.top_k;
    const Wanted wanted = wanted_of(row, false);
    std::vector<double> times;
    for (int i = 0; i < 200; ++i) {
      const auto start = std::chrono::steady_clock::now();
      make_share(sampler.scans(), logits.data(), kVocab, 0, row, wanted.tokens, *reinterpret_cast<Share*>(memory.data()));
      times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() * 1e6);
    }
    std::sort(times.begin(), times.end());
    std::printf("%-12s a share of %ld logits: %7.1f us\n", kind.name, long(kVocab), times[times.size() / 2]);
  }
}

}  // namespace
}  // namespace oarlock::cpu

int main(int argc, char** argv) {
  using namespace oarlock;
  if (argc > 1 && std::string(argv[1]) == "bench") {
    cpu::bench();
    return 0;
  }
  const int batches = argc > 1 ? std::atoi(argv[1]) : 150;
  std::mt19937 random(argc > 2 ? uint32_t(std::atoi(argv[2])) : 1u);
  cpu::Tally tally;
  for (int batch = 0; batch < batches; ++batch) {
    if (!cpu::check_batch(random, tally)) std::printf("FAIL batch %d: not what one sampler draws\n", batch);
  }
  std::printf("ranks %s: %d rows, %d wrong, %d drew another token than one sampler\n", name_of(selected_isa()), tally.rows,
              tally.wrong, tally.other_tokens);
  for (const cpu::Kind& kind : cpu::kKinds) cpu::print_bytes(kind);
  return tally.wrong == 0 && tally.other_tokens * 500 <= tally.rows ? 0 : 1;
}
