// Loops for machine.cpp: VDPBF16PS and VPDPBUSD.
#include <immintrin.h>

#include "cpu/gemm/machine_kernels.h"

namespace oarlock::cpu {
namespace {
constexpr int kRounds = 4096;
}

double rate_bf16_avx512(const uint8_t* operands, float* sink) {
  const float* w = reinterpret_cast<const float*>(operands);
  __m512 acc[24];
  for (auto& a : acc) a = _mm512_setzero_ps();
  for (int round = 0; round < kRounds; ++round) {
    __m512 x[4];
    for (int p = 0; p < 4; ++p) x[p] = _mm512_load_ps(w + (round % 64 * 4 + p) * 16);
#pragma GCC unroll 6
    for (int r = 0; r < 6; ++r) {
      __m512 a = _mm512_set1_ps(w[r]);
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) acc[r * 4 + p] = _mm512_dpbf16_ps(acc[r * 4 + p], (__m512bh)a, (__m512bh)x[p]);
    }
  }
  for (auto& a : acc) _mm512_storeu_ps(sink, _mm512_add_ps(a, _mm512_loadu_ps(sink)));
  return kRounds * 24.0 * 64;
}

double rate_int8_vnni(const uint8_t* operands, float* sink) {
  const int32_t* w = reinterpret_cast<const int32_t*>(operands);
  __m512i acc[24];
  for (auto& a : acc) a = _mm512_setzero_si512();
  for (int round = 0; round < kRounds; ++round) {
    __m512i x[4];
    for (int p = 0; p < 4; ++p) x[p] = _mm512_load_si512(w + (round % 64 * 4 + p) * 16);
#pragma GCC unroll 6
    for (int r = 0; r < 6; ++r) {
      __m512i a = _mm512_set1_epi32(w[r]);
#pragma GCC unroll 4
      for (int p = 0; p < 4; ++p) acc[r * 4 + p] = _mm512_dpbusd_epi32(acc[r * 4 + p], x[p], a);
    }
  }
  for (auto& a : acc) _mm512_storeu_ps(sink, _mm512_add_ps(_mm512_cvtepi32_ps(a), _mm512_loadu_ps(sink)));
  return kRounds * 24.0 * 128;
}

}  // namespace oarlock::cpu
