// Quantized groups to bf16 tiles, and the x they meet. Included by gemm_amx.cpp.
//
// Why not integer tiles: a group of 32 fills half of an int8 tile, and its sums must leave the tiles for float32 after every
// one, which makes them slower than bf16 tiles, whose sums stay. For few rows the expansion runs beside the reading of the
// weights, for many it costs next to nothing.
//
// w = d * q (+ m) is computed in f16, 32 elements at a time, and cut to bf16 by moving its bits: f16 has 5 bits of exponent,
// so the bf16 number that has the same exponent bits is w * 2^-112. To keep products well inside float32, x is held as
// x * 2^96, and w as w * 2^shift with a shift that fits the weight's largest element; the result is multiplied by 2^(16 -
// shift). All of these are exact. An element below 2^-29 of the largest becomes 0.
#pragma once

constexpr int kXShift = 96;

// x * 2^96 in bf16: infinite from 2^31 on, and NaN stays NaN.
OARLOCK_INLINE __m512i raise(__m512i x) {
  const __m512i magnitude_bits = _mm512_set1_epi16(0x7fff), infinity = _mm512_set1_epi16(0x7f80);
  __m512i magnitude = _mm512_and_si512(x, magnitude_bits);
  __m512i raised = _mm512_min_epu16(_mm512_add_epi16(magnitude, _mm512_set1_epi16(kXShift << 7)), infinity);
  raised = _mm512_mask_mov_epi16(raised, _mm512_cmpgt_epu16_mask(magnitude, infinity), magnitude);
  raised = _mm512_maskz_mov_epi16(_mm512_cmpge_epu16_mask(magnitude, _mm512_set1_epi16(0x80)), raised);
  return _mm512_or_si512(raised, _mm512_andnot_si512(magnitude_bits, x));
}

// f16 to bf16 * 2^-112 in two steps, rounded to nearest: a rounded shift by three places, which spreads the sign, then, with
// the mask 0x8fff, the sign alone.
OARLOCK_INLINE __m512i shorten(__m512h w) { return _mm512_mulhrs_epi16(_mm512_castph_si512(w), _mm512_set1_epi16(1 << 12)); }
OARLOCK_INLINE __m512i narrow(__m512h w) { return _mm512_and_si512(shorten(w), _mm512_set1_epi16(short(0x8fff))); }

// A column's d or m for both of its elements in a tile row, times the shift.
OARLOCK_INLINE __m512h by_column(const uint8_t* from, __m256h shift) {
  __m256i each = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  each = _mm256_castph_si256(_mm256_mul_ph(_mm256_castsi256_ph(each), shift));
  __m512i low = _mm512_cvtepu16_epi32(each);
  return _mm512_castsi512_ph(_mm512_or_si512(low, _mm512_slli_epi32(low, 16)));
}

// Draws as much as a group takes from memory.
template <bool kInt4>
OARLOCK_INLINE void draw_group(const uint8_t* from) {
  constexpr int64_t kBytes = (kInt4 ? kInt4Record : kInt8Record) / 2;
#pragma GCC unroll 9
  for (int64_t at = 0; at < kBytes; at += 64) _mm_prefetch(from + at, _MM_HINT_T0);
}

// Two k of 16 columns, a row of a tile, in f16.
OARLOCK_INLINE __m512h int8_weights(const uint8_t* codes, int row, __m512h d) {
  __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + row * 32));
  return _mm512_mul_ph(_mm512_cvtepi16_ph(_mm512_cvtepi8_epi16(q)), d);
}

OARLOCK_INLINE __m512h int4_weights(const uint8_t* codes, int row, __m512h d, __m512h m) {
  // 0..15 twice, as f16: the lookup takes five bits of a lane, the code and one more that must not matter.
  const __m512i values =
      _mm512_broadcast_i64x4(_mm256_setr_epi16(0, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700, 0x4800, 0x4880,
                                               0x4900, 0x4980, 0x4a00, 0x4a80, 0x4b00, 0x4b80));
  __m512i four = _mm512_loadu_si512(codes + row / 4 * 64);
  __m512i u = _mm512_permutexvar_epi16(_mm512_srli_epi16(four, 4 * (row % 4)), values);
  return _mm512_fmadd_ph(d, _mm512_castsi512_ph(u), m);
}

OARLOCK_INLINE void expand_int8(const GroupView& view, __m256h shift, uint8_t* tile) {
  __m512h d = by_column(view.d, shift);
#pragma GCC unroll 8
  for (int row = 0; row < 16; ++row) _mm512_store_si512(tile + row * 64, narrow(int8_weights(view.codes, row, d)));
}

OARLOCK_INLINE void expand_int4(const GroupView& view, __m256h shift, uint8_t* tile) {
  __m512h d = by_column(view.d, shift), m = by_column(view.m, shift);
#pragma GCC unroll 16
  for (int row = 0; row < 16; ++row) _mm512_store_si512(tile + row * 64, narrow(int4_weights(view.codes, row, d, m)));
}
