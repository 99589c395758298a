// Checks of the sampler against the CPU's reference, token for token.
#include <cmath>
#include <limits>

#include "cpu/sampler/sampler.h"
#include "cuda/check.h"

namespace oarlock::cuda::check {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Host arrays of a Sampling; kept while the host's struct points into them.
struct Arrays {
  std::vector<float> temperature, top_p, min_p, repetition, presence, frequency, bias_values;
  std::vector<int32_t> top_k, draw, top_logprobs, target, history_starts, history_ids, history_counts, bias_starts, bias_ids,
      mask_rows;
  std::vector<uint64_t> seed;
  std::vector<uint32_t> masks;
};

template <typename Pick>
Sampling view(const Arrays& a, Pick&& pick) {
  Sampling s;
  s.temperature = pick(a.temperature);
  s.top_p = pick(a.top_p);
  s.min_p = pick(a.min_p);
  s.top_k = pick(a.top_k);
  s.repetition_penalty = pick(a.repetition);
  s.presence_penalty = pick(a.presence);
  s.frequency_penalty = pick(a.frequency);
  s.seed = pick(a.seed);
  s.draw = pick(a.draw);
  s.top_logprobs = pick(a.top_logprobs);
  s.target = pick(a.target);
  s.history_starts = pick(a.history_starts);
  s.history_ids = pick(a.history_ids);
  s.history_counts = pick(a.history_counts);
  s.bias_starts = pick(a.bias_starts);
  s.bias_ids = pick(a.bias_ids);
  s.bias_values = pick(a.bias_values);
  s.masks = pick(a.masks);
  s.mask_rows = pick(a.mask_rows);
  return s;
}

Arrays random_arrays(int rows, int vocab) {
  Arrays a;
  const int words = (vocab + 31) / 32;
  a.history_starts.push_back(0);
  a.bias_starts.push_back(0);
  for (int m = 0; m < 2; ++m) {
    for (int w = 0; w < words; ++w) a.masks.push_back(m == 0 ? 0x55555555u : uint32_t(integer(0, 1 << 30)));
  }
  for (int r = 0; r < rows; ++r) {
    auto often = [](float usual, float other) { return integer(0, 1) ? usual : other; };
    a.temperature.push_back(often(0, 0.3f + float(integer(0, 15)) / 10));
    a.top_p.push_back(often(1, float(integer(0, 99)) / 100));
    a.min_p.push_back(often(0, float(integer(1, 50)) / 100));
    a.top_k.push_back(int(often(0, float(integer(1, 60)))));
    a.repetition.push_back(often(1, 1.3f));
    a.presence.push_back(often(0, 0.5f));
    a.frequency.push_back(often(0, 0.2f));
    a.seed.push_back(uint64_t(generator()()) << 32 | generator()());
    a.draw.push_back(integer(0, 1000));
    a.top_logprobs.push_back(integer(0, 2) - 1 + (integer(0, 3) == 0 ? 19 : 0));
    a.target.push_back(integer(0, 7) == 0 ? integer(0, vocab - 1) : -1);
    for (int id = integer(0, 30); id < vocab && integer(0, 20) > 0; id += integer(1, 300)) {
      a.history_ids.push_back(id);
      a.history_counts.push_back(integer(0, 4));
    }
    a.history_starts.push_back(int(a.history_ids.size()));
    for (int i = integer(-2, 4), id = 5; i > 0; --i, id += 7) {
      a.bias_ids.push_back(id);
      a.bias_values.push_back(i == 3 ? -kInfinity : normal(5));
    }
    a.bias_starts.push_back(int(a.bias_ids.size()));
    a.mask_rows.push_back(integer(0, 5) == 0 ? integer(0, 1) : -1);
  }
  a.history_ids.push_back(0);  // never empty
  a.history_counts.push_back(0);
  a.bias_ids.push_back(0);
  a.bias_values.push_back(0);
  return a;
}

}  // namespace

void check_sampler(CudaOps& ops, Report& report) {
  int differing = 0, drawn = 0;
  for (int vocab : {40, 1000, 49152, 128256}) {
    if (report.quick && vocab > 1000) continue;
    const bool few = vocab == 40 || vocab > 100000;  // Hopper has one kernel for few rows and one for many
    const int rows = few ? 24 : report.quick ? 36 : 60;
    std::vector<float> logits = normals(size_t(rows) * size_t(vocab), 3);
    for (int r = 0; r < rows; ++r) {
      float* row = &logits[size_t(r) * size_t(vocab)];
      if (r % 3 == 0) {
        for (int i = 0; i < vocab; ++i) row[i] = std::round(row[i] * 4) / 4;  // many ties
      }
      if (r == 7) row[vocab / 2] = std::nanf("");
      if (r == 8) row[vocab - 1] = kInfinity;
      if (r == 9) std::fill(row, row + vocab, -kInfinity);
      if (r == 10) std::fill(row, row + vocab, -kInfinity), row[vocab / 3] = 1;
    }
    const Arrays arrays = random_arrays(rows, vocab);
    const Sampling host = view(arrays, [](const auto& v) { return v.data(); });
    const Sampling device = view(arrays, [](const auto& v) { return to_device(v); });
    struct Results {
      std::vector<int32_t> token, status, top_ids;
      std::vector<float> logprob, top_logprobs;
      explicit Results(int rows)
          : token(size_t(rows), -7),
            status(size_t(rows), -7),
            top_ids(size_t(rows) * kMaxTopLogprobs, -7),
            logprob(size_t(rows), -7),
            top_logprobs(size_t(rows) * kMaxTopLogprobs, -7) {}
    } want(rows), got(rows);
    Sampled wanted{want.token.data(), want.logprob.data(), want.top_ids.data(), want.top_logprobs.data(), want.status.data()};
    for (int r = 0; r < rows; ++r) {
      cpu::reference::sample_row(&logits[size_t(r) * size_t(vocab)], vocab, host, wanted, r);
    }
    Sampled sampled{to_device(got.token), to_device(got.logprob), to_device(got.top_ids), to_device(got.top_logprobs),
                    to_device(got.status)};
    ops.sample(tensor(logits, DType::f32, rows, vocab), device, sampled);
    ops.synchronize();
    auto fetch = [](auto& to, const auto* from) {
      OARLOCK_CUDA_CHECK(cudaMemcpy(to.data(), from, to.size() * sizeof(to[0]), cudaMemcpyDeviceToHost));
    };
    fetch(got.token, sampled.token);
    fetch(got.status, sampled.status);
    fetch(got.logprob, sampled.logprob);
    fetch(got.top_ids, sampled.top_ids);
    fetch(got.top_logprobs, sampled.top_logprobs);
    for (int r = 0; r < rows; ++r) {
      const size_t i = size_t(r);
      const std::string what = "sampler vocabulary " + std::to_string(vocab) + " row " + std::to_string(r);
      report.expect(got.status[i] == want.status[i], what + ": status " + std::to_string(got.status[i]));
      const bool greedy = arrays.temperature[i] == 0 || arrays.target[i] >= 0 || want.status[i] != 0;
      if (greedy) {
        report.expect(got.token[i] == want.token[i], what + ": token " + std::to_string(got.token[i]) + ", the reference has " +
                                                         std::to_string(want.token[i]));
      } else {
        ++drawn;
        differing += got.token[i] != want.token[i];
      }
      if (got.token[i] == want.token[i]) {
        const bool same = got.logprob[i] == want.logprob[i];  // -inf minus -inf is no number
        report.expect(same || std::fabs(got.logprob[i] - want.logprob[i]) < 2e-5 * (1 + std::fabs(want.logprob[i])),
                      what + ": logprob");
      }
      for (int j = 0; want.status[i] == 0 && j < arrays.top_logprobs[i]; ++j) {
        const size_t at = i * kMaxTopLogprobs + size_t(j);
        report.expect(got.top_ids[at] == want.top_ids[at], what + ": alternative " + std::to_string(j));
        const bool both = got.top_logprobs[at] == want.top_logprobs[at];
        report.expect(both || std::fabs(got.top_logprobs[at] - want.top_logprobs[at]) < 1e-4, what + ": its log-probability");
      }
    }
  }
  // Float weights against double ones: a draw may fall on the other side of a border, but rarely.
  report.expect(differing * 50 <= drawn,
                "draws that differ from the reference: " + std::to_string(differing) + " of " + std::to_string(drawn));
}

}  // namespace oarlock::cuda::check
