// Passes over a whole row of logits: the part of sampling that is worth vectors.
#pragma once

#include <cstdint>

namespace oarlock::cpu {

constexpr int kScanChunk = 1024;
constexpr int kMostTop = 128;

struct Largest {
  float value;  // -inf when nothing is above it
  int32_t id;   // lowest with that value
  bool nan;
};

// t = (x - largest) * factor are base-2 log-weights, 0 for the likeliest; a weight is 2^t.
struct LogWeights {
  const float* x;
  int64_t count;
  float largest, factor;
};

// Tokens whose log-weight reached a threshold, in order of id.
struct Candidates {
  float* t;
  float* weight;
  int32_t* id;
  int64_t count;
};

struct SamplerScans {
  Largest (*largest)(const float* x, int64_t count);
  // Sum of the weights with t >= least, and that of each kScanChunk of x to chunk_sums unless it is null.
  double (*sum)(const LogWeights& row, float least, double* chunk_sums);
  // Weights of x[begin, end), at most kScanChunk of them, which begin at a multiple of kScanChunk.
  void (*weights)(const LogWeights& row, int64_t begin, int64_t end, float* out);
  void (*gather)(const LogWeights& row, float least, Candidates& out);
  // The `wanted` (up to kMostTop) largest, best first, lower id first among equals; -1 and -inf where there are no more.
  void (*top)(const float* x, int64_t count, int wanted, int32_t* ids, float* values);
};

namespace avx2 {
extern const SamplerScans sampler_scans;
}
namespace avx512 {
extern const SamplerScans sampler_scans;
}

}  // namespace oarlock::cpu
