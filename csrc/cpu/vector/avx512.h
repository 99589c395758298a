// Sixteen float32 lanes (AVX-512 F, BW, DQ, VL): the vector type that kernels written once take as a template argument.
// Only files compiled for AVX-512 include this. See vector/avx2.h for the eight-lane twin; both state the same operations.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "base/dtype.h"

namespace oarlock::cpu {

struct Avx512 {
  using F = __m512;
  static constexpr int kLanes = 16;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const bf16* p) {
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store(bf16* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bf16(x), 16)));
  }
  // The first n lanes from p, the rest `other`.
  static F load_head(const float* p, int n, F other) { return _mm512_mask_loadu_ps(other, head_mask(n), p); }
  // 16 pairs of bf16: the first of each pair, and the second.
  static void load_pairs(const bf16* p, F& first, F& second) {
    __m512i pairs = _mm512_loadu_si512(p);
    first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    second = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000u))));
  }
  // Into 16 pairs of bf16: x as the first of each pair and zero as the second; or x as the second, the first kept.
  static void store_pair_first(bf16* p, F x) { _mm512_storeu_si512(p, _mm512_srli_epi32(round_bf16(x), 16)); }
  static void store_pair_second(bf16* p, F x) {
    __m512i high = _mm512_and_si512(round_bf16(x), _mm512_set1_epi32(int(0xffff0000u)));
    __m512i low = _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(0xffff));
    _mm512_storeu_si512(p, _mm512_or_si512(low, high));
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // b where either is NaN.
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static float reduce_add(F x) { return _mm512_reduce_add_ps(x); }
  static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }

  // x in lanes whose number lies in [low, high), `other` elsewhere.
  static F keep_range(F x, int low, int high, F other) {
    uint32_t below_high = high <= 0 ? 0 : high >= kLanes ? 0xffffu : (1u << high) - 1;
    uint32_t below_low = low <= 0 ? 0 : low >= kLanes ? 0xffffu : (1u << low) - 1;
    return _mm512_mask_mov_ps(other, __mmask16(below_high & ~below_low), x);
  }
  // Bit i: lane i of a is greater than, at least, or unordered with that of b.
  static uint32_t greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static uint32_t at_least(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static uint32_t unordered(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
  static F select(uint32_t mask, F yes, F no) { return _mm512_mask_mov_ps(no, __mmask16(mask), yes); }

  // 2^x for x <= 0, relative error under 2e-7; exactly 1 at 0 and exactly 0 at -inf.
  static F exp2(F x) {
    F fraction = _mm512_reduce_ps(x, 0);
    F whole = _mm512_sub_ps(x, fraction);
    F p = _mm512_set1_ps(0.001326472032815218f);
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.009671512991189957f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.05550733581185341f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.24022242426872253f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.6931470036506653f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
  }

  // The same with a relative error under 1e-4, a twentieth of what rounding to bf16 then adds.
  static F exp2_coarse(F x) {
    F fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
    F p = _mm512_set1_ps(0.07706563f);
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.22764654f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.69511644f));
    p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);  // takes the largest whole number in x
  }

 private:
  static __mmask16 head_mask(int n) { return __mmask16(n >= kLanes ? 0xffffu : (1u << n) - 1); }
  // Rounds to nearest even at bit 16, the bits below it undefined; NaN stays NaN.
  static __m512i round_bf16(F x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  }
};

#ifdef __AVX512BF16__
// The same where the processor rounds to bf16 itself, with subnormal numbers as zero.
struct Avx512Bf16 : Avx512 {
  using Avx512::store;
  static void store(bf16* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round(x)); }
  static void store_pair_first(bf16* p, F x) { _mm512_storeu_si512(p, _mm512_cvtepu16_epi32(round(x))); }
  static void store_pair_second(bf16* p, F x) {
    __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(round(x)), 16);
    __m512i low = _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(0xffff));
    _mm512_storeu_si512(p, _mm512_or_si512(low, high));
  }

 private:
  static __m256i round(F x) { return (__m256i)_mm512_cvtneps_pbh(x); }
};
#endif

}  // namespace oarlock::cpu
