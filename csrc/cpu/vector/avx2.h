// Eight float32 lanes (AVX2 and FMA): the vector type that kernels written once take as a template argument.
// The twin of vector/avx512.h, which states what the operations do.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "base/dtype.h"

namespace oarlock::cpu {

struct Avx2 {
  using F = __m256;
  static constexpr int kLanes = 8;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const bf16* p) {
    __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void store(bf16* p, F x) {
    __m256i words = _mm256_srli_epi32(round_bf16(x), 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static F load_head(const float* p, int n, F other) {
    __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane_numbers());
    return _mm256_blendv_ps(other, _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
  }
  static void load_pairs(const bf16* p, F& first, F& second) {
    __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    first = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    second = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000u))));
  }
  static void store_pair_first(bf16* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_srli_epi32(round_bf16(x), 16));
  }
  static void store_pair_second(bf16* p, F x) {
    __m256i* at = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(at, _mm256_blend_epi16(_mm256_loadu_si256(at), round_bf16(x), 0xaa));
  }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static float reduce_add(F x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float reduce_max(F x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  static F keep_range(F x, int low, int high, F other) {
    __m256i lanes = lane_numbers();
    __m256i keep = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(low), lanes),
                                       _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lanes));
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(keep));
  }
  static uint32_t greater(F a, F b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ))); }
  static uint32_t at_least(F a, F b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ))); }
  static uint32_t unordered(F a, F b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q))); }
  static F select(uint32_t mask, F yes, F no) {
    __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i chosen = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(mask)), bit), bit);
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(chosen));
  }

  static F exp2(F x) {
    // Below 2^-126 the result is 0: the exponent is added as an integer, and float32 would have no exponent for it.
    __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-126.0f), _CMP_LT_OQ);
    F bounded = _mm256_max_ps(_mm256_set1_ps(-126.0f), x);  // NaN passes
    F whole = _mm256_round_ps(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    F fraction = _mm256_sub_ps(bounded, whole);
    F p = _mm256_set1_ps(0.001326472032815218f);
    p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(0.009671512991189957f));
    p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(0.05550733581185341f));
    p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(0.24022242426872253f));
    p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(0.6931470036506653f));
    p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(1.0f));
    // 2^whole is built on its own and multiplied, so that a NaN in p stays one.
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    return _mm256_andnot_ps(tiny, _mm256_mul_ps(p, _mm256_castsi256_ps(exponent)));
  }

 private:
  static __m256i lane_numbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static __m256i round_bf16(F x) {
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan));
  }
};

}  // namespace oarlock::cpu
