// Quantized groups to bf16 tiles: w = d * q (+ m) in float32, rounded once. Included by gemm_amx.cpp.
//
// Why not integer tiles: a group of 32 fills half of an int8 tile and its sums must leave the tiles for float32 after every
// one, which makes them slower than bf16 tiles, whose sums stay. Expanding costs about as long as reading the weights does,
// and for many rows next to nothing.

// Each of a tile row's 32 elements takes its column's factor: columns 0-7 twice each, and 8-15 twice each.
struct Doubled {
  __m512 low, high;
};

OARLOCK_INLINE Doubled doubled(__m512 v) {
  const __m512i low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return {_mm512_permutexvar_ps(low, v), _mm512_permutexvar_ps(_mm512_add_epi32(low, _mm512_set1_epi32(8)), v)};
}

OARLOCK_INLINE __m512 from_f16(const uint8_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

OARLOCK_INLINE void store_tile_row(uint8_t* to, __m512 low, __m512 high) {
  _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

OARLOCK_INLINE void expand_int8(const GroupView& view, uint8_t* tile) {
  Doubled d = doubled(from_f16(view.d));
#pragma GCC unroll 4
  for (int row = 0; row < 16; ++row) {
    const __m128i* q = reinterpret_cast<const __m128i*>(view.codes + row * 32);
    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q)));
    __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q + 1)));
    store_tile_row(tile + row * 64, _mm512_mul_ps(low, d.low), _mm512_mul_ps(high, d.high));
  }
}

// A nibble u shifted to the top of a mantissa makes 1 + u / 16, so w = 16 d * (1 + u / 16) + (m - 16 d) takes no conversion.
template <int kNibble>
OARLOCK_INLINE __m512 nibble_as_float(__m512i codes) {
  constexpr int kShift = 19 - 4 * kNibble;
  __m512i shifted =
      kShift >= 0 ? _mm512_slli_epi32(codes, kShift < 0 ? 0 : kShift) : _mm512_srli_epi32(codes, kShift < 0 ? -kShift : 0);
  constexpr int kAndOr = 0xea;  // (shifted & mask) | one
  return _mm512_castsi512_ps(
      _mm512_ternarylogic_epi32(shifted, _mm512_set1_epi32(0x780000), _mm512_set1_epi32(0x3f800000), kAndOr));
}

template <int kRow>
OARLOCK_INLINE void expand_int4_row(__m512i codes, const Doubled& d, const Doubled& m, uint8_t* tile) {
  __m512 low = _mm512_fmadd_ps(d.low, nibble_as_float<2 * kRow>(codes), m.low);
  __m512 high = _mm512_fmadd_ps(d.high, nibble_as_float<2 * kRow + 1>(codes), m.high);
  store_tile_row(tile, low, high);
}

OARLOCK_INLINE void expand_int4(const GroupView& view, uint8_t* tile) {
  __m512 factor = _mm512_mul_ps(from_f16(view.d), _mm512_set1_ps(16));
  Doubled d = doubled(factor), m = doubled(_mm512_sub_ps(from_f16(view.m), factor));
#pragma GCC unroll 4
  for (int vector = 0; vector < 4; ++vector) {
    __m512i codes = _mm512_loadu_si512(view.codes + vector * 64);
    expand_int4_row<0>(codes, d, m, tile + vector * 256);
    expand_int4_row<1>(codes, d, m, tile + vector * 256 + 64);
    expand_int4_row<2>(codes, d, m, tile + vector * 256 + 128);
    expand_int4_row<3>(codes, d, m, tile + vector * 256 + 192);
  }
}
