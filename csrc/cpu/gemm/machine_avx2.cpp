// Loops for machine.cpp: reads, float32 FMA, 16-bit integer products (what int8 weights take without VNNI).
#include <immintrin.h>

#include "cpu/gemm/machine_kernels.h"

namespace oarlock::cpu {
namespace {
constexpr int kRounds = 4096;
}

uint64_t read_avx2(const uint8_t* data, int64_t stride, int64_t bytes) {
  __m256i sum = _mm256_setzero_si256();
  for (int64_t at = 0; at < bytes; at += 128)
    for (int stream = 0; stream < 4; ++stream)
      for (int part = 0; part < 128; part += 32)
        sum = _mm256_or_si256(sum, _mm256_load_si256(reinterpret_cast<const __m256i*>(data + stream * stride + at + part)));
  return uint64_t(_mm256_extract_epi64(sum, 0)) | uint64_t(_mm256_extract_epi64(sum, 3));
}

double rate_f32_avx2(const uint8_t* operands, float* sink) {
  const float* w = reinterpret_cast<const float*>(operands);
  __m256 acc[12];
  for (auto& a : acc) a = _mm256_setzero_ps();
  for (int round = 0; round < kRounds; ++round) {
    __m256 low = _mm256_load_ps(w + round % 256 * 16), high = _mm256_load_ps(w + round % 256 * 16 + 8);
#pragma GCC unroll 6
    for (int r = 0; r < 6; ++r) {
      __m256 x = _mm256_broadcast_ss(w + r);
      acc[2 * r] = _mm256_fmadd_ps(x, low, acc[2 * r]);
      acc[2 * r + 1] = _mm256_fmadd_ps(x, high, acc[2 * r + 1]);
    }
  }
  for (auto& a : acc) _mm256_storeu_ps(sink, _mm256_add_ps(a, _mm256_loadu_ps(sink)));
  return kRounds * 12.0 * 16;
}

double rate_int8_avx2(const uint8_t* operands, float* sink) {
  const __m256i* w = reinterpret_cast<const __m256i*>(operands);
  __m256i acc[10];
  for (auto& a : acc) a = _mm256_setzero_si256();
  for (int round = 0; round < kRounds; ++round) {
    __m256i x = _mm256_load_si256(w + round % 512);
#pragma GCC unroll 10
    for (int r = 0; r < 10; ++r) acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(x, _mm256_load_si256(w + r)));
  }
  for (auto& a : acc) _mm256_storeu_ps(sink, _mm256_add_ps(_mm256_cvtepi32_ps(a), _mm256_loadu_ps(sink)));
  return kRounds * 10.0 * 32;
}

}  // namespace oarlock::cpu
