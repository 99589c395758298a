// Speed of sampling beside its floor, the logits' bytes over the read bandwidth (logits that were just computed lie in a cache,
// where greedy may pass it). Usage: sampler_bench [threads].
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cpu/gemm/machine.h"
#include "cpu/sampler/sampler.h"

int main(int argc, char** argv) {
  using namespace oarlock;
  using Clock = std::chrono::steady_clock;
  ThreadPool pool(argc > 1 ? std::atoi(argv[1]) : int(std::thread::hardware_concurrency()));
  const double read_rate = cpu::read_bandwidth(pool, 0.2);
  std::printf("sampler, %s, %d threads; reads %.1f GB/s\n", name_of(selected_isa()), pool.size(), read_rate / 1e9);
  struct Kind {
    const char* name;
    float temperature, top_p, spread;
    int top_k, alternatives;
  };
  const Kind kinds[] = {{"greedy", 0, 1, 3, 0, -1},         {"greedy, 20 logprobs", 0, 1, 3, 0, 20},
                        {"temperature", 0.8f, 1, 3, 0, -1}, {"top_p 0.9", 0.8f, 0.9f, 3, 0, -1},
                        {"top_k 40", 0.8f, 1, 3, 40, -1},   {"top_p 0.9, flat logits", 1, 0.9f, 0.3f, 0, -1}};
  constexpr int64_t kVocab = 49152;
  std::mt19937 random(1);
  for (const Kind& kind : kinds) {
    for (size_t rows : {1, 64}) {
      std::normal_distribution<float> normal(0, kind.spread);
      std::vector<float> logits(rows * size_t(kVocab));
      for (float& x : logits) x = normal(random);
      std::vector<float> temperature(rows, kind.temperature), top_p(rows, kind.top_p);
      std::vector<int32_t> top_k(rows, kind.top_k), alternatives(rows, kind.alternatives), token(rows), status(rows),
          top_ids(rows * kMaxTopLogprobs);
      std::vector<float> logprob(rows), top_logprobs(rows * kMaxTopLogprobs);
      Sampling sampling;
      sampling.temperature = temperature.data();
      sampling.top_p = top_p.data();
      sampling.top_k = top_k.data();
      sampling.top_logprobs = alternatives.data();
      cpu::Sampler sampler(pool);
      sampler.reserve(int(rows), kVocab);
      std::vector<double> times;
      for (int repeat = 0; repeat < 24; ++repeat) {
        auto start = Clock::now();
        sampler.sample({logits.data(), DType::f32, int64_t(rows), kVocab, kVocab}, sampling,
                       {token.data(), logprob.data(), top_ids.data(), top_logprobs.data(), status.data()});
        times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
      }
      std::nth_element(times.begin(), times.begin() + 6, times.end());
      double floor = double(logits.size()) * 4 / read_rate;
      std::printf("%-24s %2zu rows  %8.1f us, floor %7.1f us: %3.0f %%\n", kind.name, rows, times[6] * 1e6, floor * 1e6,
                  100 * floor / times[6]);
    }
  }
}
