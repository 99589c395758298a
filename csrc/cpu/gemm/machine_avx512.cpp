// Loops for machine.cpp: reads, float32 FMA.
#include <immintrin.h>

#include "cpu/gemm/machine_kernels.h"

namespace oarlock::cpu {

uint64_t read_avx512(const uint8_t* data, int64_t stride, int64_t bytes) {
  __m512i sum[4];
  for (auto& s : sum) s = _mm512_setzero_si512();
  for (int64_t at = 0; at < bytes; at += 256) {
#pragma GCC unroll 4
    for (int stream = 0; stream < 4; ++stream)
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part)
        sum[part] = _mm512_or_si512(sum[part], _mm512_load_si512(data + stream * stride + at + part * 64));
  }
  return uint64_t(_mm512_reduce_or_epi64(_mm512_or_si512(_mm512_or_si512(sum[0], sum[1]), _mm512_or_si512(sum[2], sum[3]))));
}

double rate_f32_avx512(const uint8_t* operands, float* sink) {
  constexpr int kRounds = 4096;
  const float* w = reinterpret_cast<const float*>(operands);
  __m512 acc[24];
  for (auto& a : acc) a = _mm512_setzero_ps();
  for (int round = 0; round < kRounds; ++round) {
    __m512 x[4];
    for (int p = 0; p < 4; ++p) x[p] = _mm512_load_ps(w + (round % 64 * 4 + p) * 16);
#pragma GCC unroll 6
    for (int r = 0; r < 6; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) acc[r * 4 + p] = _mm512_fmadd_ps(x[p], _mm512_set1_ps(w[r]), acc[r * 4 + p]);
  }
  for (auto& a : acc) _mm512_storeu_ps(sink, _mm512_add_ps(a, _mm512_loadu_ps(sink)));
  return kRounds * 24.0 * 32;
}

}  // namespace oarlock::cpu
