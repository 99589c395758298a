// Rows of x as two 8-bit digits, and their dot products with spans of int8 and int4 weights by VPDPBUSD. Included by the kernel
// files of AVX-512 VNNI and AMX inside their unnamed namespaces.
#pragma once

#include "cpu/gemm/span_codes.inl"
#include "cpu/gemm/spans.inl"

// q = 128 * high + low of a row of k elements: 64 bytes of each a tile, `step` bytes apart, zeros beyond k; with kTerms the
// terms. Returns the row's scale.
template <bool kTerms>
OARLOCK_INLINE float digit_row(const uint16_t* from, int64_t k, uint8_t* high, uint8_t* low, int64_t step, int32_t* terms) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i most = _mm512_setzero_si512();
  for (int64_t i = 0; i < k; i += 32) most = _mm512_max_epu16(most, _mm512_and_si512(_mm512_loadu_si512(from + i), magnitude));
  most = _mm512_max_epu16(_mm512_and_si512(most, _mm512_set1_epi32(0xffff)), _mm512_srli_epi32(most, 16));
  const RowScale scale = row_scale(uint16_t(_mm512_reduce_max_epu32(most)));
  const __m512 inverse = _mm512_set1_ps(scale.inverse), magic = _mm512_set1_ps(kMagic);
  const __m512i offset = _mm512_set1_epi32(kMagicBits);
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);  // of words after packing, which goes by 128 bits
  const int64_t span = span_tiles(k);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0, tile = 0; i < k; i += 64, high += step, low += step) {
    __m256i digits[2][2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i x = i + 32 * half < k ? _mm512_loadu_si512(from + i + 32 * half) : _mm512_setzero_si512();
      __m512i words[2];
#pragma GCC unroll 2
      for (int quarter = 0; quarter < 2; ++quarter) {
        __m512i bits = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, quarter));
        __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
        words[quarter] = _mm512_sub_epi32(_mm512_castps_si512(_mm512_fmadd_ps(value, inverse, magic)), offset);
        if (kTerms) sum = _mm512_add_epi32(sum, words[quarter]);
      }
      __m512i q = _mm512_permutexvar_epi64(order, _mm512_packs_epi32(words[0], words[1]));
      __m512i upper = _mm512_srai_epi16(_mm512_add_epi16(q, _mm512_set1_epi16(64)), 7);
      digits[half][0] = _mm512_cvtepi16_epi8(upper);
      digits[half][1] = _mm512_cvtepi16_epi8(_mm512_sub_epi16(q, _mm512_slli_epi16(upper, 7)));
    }
    _mm512_storeu_si512(high, _mm512_inserti64x4(_mm512_castsi256_si512(digits[0][0]), digits[1][0], 1));
    _mm512_storeu_si512(low, _mm512_inserti64x4(_mm512_castsi256_si512(digits[0][1]), digits[1][1], 1));
    if (kTerms && (++tile == span || i + 64 >= k)) {
      *terms++ = -128 * _mm512_reduce_add_epi32(sum);
      sum = _mm512_setzero_si512();
      tile = 0;
    }
  }
  return scale.scale;
}

// A row's tiles one after the other, [high 64][low 64].
void digit_rows(const Prepare& job, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    uint8_t* to = job.data + row * job.stride;
    job.scales[row] = digit_row<true>(job.x.as<uint16_t>() + row * job.x.stride, job.x.cols, to, to + 64, 128,
                                      reinterpret_cast<int32_t*>(job.terms + row * term_stride(job.x.cols)));
  }
}

template <bool kInt4>
struct Digits {
  using Floats = __m512;
  using Ints = __m512i;
  static constexpr int kBlocks = 8;
  static constexpr bool kTerms = true;
  static constexpr int64_t kTile = kInt4 ? kInt4Tile : kInt8Tile;

  OARLOCK_INLINE Floats zero() { return _mm512_setzero_ps(); }
  OARLOCK_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
  OARLOCK_INLINE void store(float* to, Floats v) { _mm512_storeu_ps(to, v); }
  OARLOCK_INLINE Floats scale(Floats v, float by) { return _mm512_mul_ps(v, _mm512_set1_ps(by)); }
  OARLOCK_INLINE Floats fma(Floats d, Ints dot, Floats acc) { return _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(dot), acc); }
  OARLOCK_INLINE Ints broadcast4(const uint8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
  }

  template <int R, int P>
  OARLOCK_INLINE void span_dots(const SpanJob& job, const uint8_t* const* codes, const uint8_t* x, int64_t first, int64_t tiles,
                                const int32_t* terms, Ints (*out)[P]) {
    constexpr int64_t kAhead = kInt4 ? 7 : 4;  // tiles
    const Ints offset = _mm512_set1_epi8(char(0x80));
    Ints high[R][P], low[R][P];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) high[r][p] = _mm512_setzero_si512(), low[r][p] = _mm512_set1_epi32(terms[r]);
    for (int64_t tile = 0; tile < tiles; ++tile, x += 128) {
      const int64_t at = tile * kTile;
      const Drawn drawn = job.next.draw<kAhead, kTile, kSpanScales>(codes[0] + at, job.panel_bytes, first + tile, job.tiles);
      GroupCodes group[P];
#pragma GCC unroll 4
      for (int p = 0; p < P && kInt4 && R == 1; ++p) _mm_prefetch(drawn.from + p * drawn.panel, _MM_HINT_T0);
#pragma GCC unroll 4
      for (int quad = 0; quad < 16; ++quad) {
        Ints w[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          if (kInt4) {
            if (quad % 8 == 0) group[p].begin(codes[p] + at, quad / 8, 0, 0x80);
            w[p] = (Ints)group[p].quad(codes[p] + at + 64 + quad / 2 * 64, quad % 2);
            if (R == 1 && quad % 2) _mm_prefetch(drawn.from + p * drawn.panel + 64 + quad / 2 * 64, _MM_HINT_T0);
          } else {
            w[p] = _mm512_xor_si512(_mm512_loadu_si512(codes[p] + at + quad * 64), offset);
            if (R == 1) _mm_prefetch(drawn.from + p * drawn.panel + quad * 64, _MM_HINT_T0);
          }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const uint8_t* digits = x + r * job.stride + quad * 4;
          Ints upper = broadcast4(digits), lower = broadcast4(digits + 64);
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p) {
            high[r][p] = _mm512_dpbusd_epi32(high[r][p], w[p], upper);
            low[r][p] = _mm512_dpbusd_epi32(low[r][p], w[p], lower);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) out[r][p] = _mm512_add_epi32(_mm512_slli_epi32(high[r][p], 7), low[r][p]);
  }
};
