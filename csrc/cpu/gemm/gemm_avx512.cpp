// Kernels for AVX-512 without VNNI or BF16 (F, BW, DQ, VL): float32 FMA, and 16-bit integer products for int8 and int4.
#include <immintrin.h>

#include "cpu/gemm/kernel.h"

namespace oarlock::cpu {
namespace {

struct Simd {
  using Floats = __m512;
  using Broadcast = __m512;
  static constexpr int kAccumulators = 24;
  OARLOCK_INLINE Floats zero() { return _mm512_setzero_ps(); }
  OARLOCK_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
  OARLOCK_INLINE void store(float* to, Floats v) { _mm512_storeu_ps(to, v); }
  OARLOCK_INLINE Broadcast broadcast(const float* from) { return _mm512_set1_ps(*from); }
  OARLOCK_INLINE Floats fma(Broadcast a, Floats w, Floats acc) { return _mm512_fmadd_ps(a, w, acc); }
  OARLOCK_INLINE Floats even_bf16(const uint8_t* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(from), 16));
  }
  OARLOCK_INLINE Floats odd_bf16(const uint8_t* from) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(from), _mm512_set1_epi32(int(0xffff0000u))));
  }
  OARLOCK_INLINE Floats from_f16(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
};

// Codes widened to 16 bits against q itself: pairs of products in 32 bits (VPMADDWD), then their sums by column.
struct Words {
  using Floats = __m512;
  using Ints = __m512i;
  static constexpr int kBlocks = 8;

  OARLOCK_INLINE Floats zero() { return _mm512_setzero_ps(); }
  OARLOCK_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
  OARLOCK_INLINE void store(float* to, Floats v) { _mm512_storeu_ps(to, v); }
  OARLOCK_INLINE Floats scale(Floats v, float by) { return _mm512_mul_ps(v, _mm512_set1_ps(by)); }
  OARLOCK_INLINE Floats from_f16(const uint8_t* from) { return Simd::from_f16(from); }
  OARLOCK_INLINE Floats fma(Floats d, Ints dot, Floats acc) { return _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(dot), acc); }
  OARLOCK_INLINE Floats fma_term(Floats m, const uint8_t* term, Floats acc) {
    return _mm512_fmadd_ps(m, _mm512_set1_ps(*reinterpret_cast<const float*>(term)), acc);
  }

  // Eight columns' codes of four k, as 16-bit words.
  template <bool kInt4>
  OARLOCK_INLINE Ints widen(const uint8_t* codes, int quad, int half) {
    const uint8_t* from = codes + (kInt4 ? quad / 2 : quad) * 64 + half * 32;
    __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    if (kInt4) bytes = _mm256_and_si256(quad % 2 ? _mm256_srli_epi16(bytes, 4) : bytes, _mm256_set1_epi8(15));
    return _mm512_cvtepu8_epi16(bytes);
  }

  // Sums of neighbours: of columns 0-7 and 8-15 to those of 0-15.
  OARLOCK_INLINE Ints by_column(Ints left, Ints right) {
    const Ints evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const Ints odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_permutex2var_epi32(left, evens, right), _mm512_permutex2var_epi32(left, odds, right));
  }

  template <int R, int P, bool kInt4>
  OARLOCK_INLINE void dots(const uint8_t* const* codes, const uint8_t* x, int64_t stride, const int32_t* start,
                           Ints (*out)[P]) {
    Ints left[R][P], right[R][P];  // sums of k pairs: columns 0-7 and 8-15
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) left[r][p] = right[r][p] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        Ints first = widen<kInt4>(codes[p], quad, 0), second = widen<kInt4>(codes[p], quad, 1);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          int64_t four;
          __builtin_memcpy(&four, x + r * stride + quad * 8, 8);
          left[r][p] = _mm512_add_epi32(left[r][p], _mm512_madd_epi16(first, _mm512_set1_epi64(four)));
          right[r][p] = _mm512_add_epi32(right[r][p], _mm512_madd_epi16(second, _mm512_set1_epi64(four)));
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        out[r][p] = by_column(left[r][p], right[r][p]);
        if (!kInt4) out[r][p] = _mm512_add_epi32(out[r][p], _mm512_set1_epi32(start[r]));
      }
    }
  }
};

#include "cpu/gemm/fma_kernels.inl"
#include "cpu/gemm/integer.inl"
#include "cpu/gemm/span_words.inl"
#include "cpu/gemm/spans.inl"

// The same over spans, for codes with a sign.
template <bool kInt4>
struct SpanWords : Words {
  static constexpr bool kTerms = false;
  static constexpr int64_t kTile = kInt4 ? kInt4Tile : kInt8Tile;

  template <int R, int P>
  OARLOCK_INLINE void span_dots(const SpanJob& job, const uint8_t* const* codes, const uint8_t* x, int64_t, int64_t tiles,
                                const int32_t*, Ints (*out)[P]) {
    alignas(64) uint8_t opened[kInt4 ? P : 1][kInt8Tile];
    Ints left[R][P], right[R][P];  // sums of k pairs: columns 0-7 and 8-15
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) left[r][p] = right[r][p] = _mm512_setzero_si512();
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int p = 0; p < P && kInt4; ++p) open_tile(codes[p] + tile * kTile, opened[p]);
      for (int quad = 0; quad < 16; ++quad) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          const uint8_t* from = (kInt4 ? opened[p] : codes[p] + tile * kTile) + quad * 64;
          const __m256i* w = reinterpret_cast<const __m256i*>(from);
          Ints first = _mm512_cvtepi8_epi16(w[0]), second = _mm512_cvtepi8_epi16(w[1]);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            int64_t four;
            __builtin_memcpy(&four, x + r * job.stride + (tile * 16 + quad) * 8, 8);
            left[r][p] = _mm512_add_epi32(left[r][p], _mm512_madd_epi16(first, _mm512_set1_epi64(four)));
            right[r][p] = _mm512_add_epi32(right[r][p], _mm512_madd_epi16(second, _mm512_set1_epi64(four)));
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) out[r][p] = by_column(left[r][p], right[r][p]);
  }
};

}  // namespace

const Kernel kAvx512F32 = {"avx512 f32", Layout::f32, Input::f32, 256 << 10, kMaxPanels, widen_rows, dense_product<FmaF32>};
const Kernel kAvx512Bf16 = {"avx512 bf16", Layout::bf16, Input::f32, 256 << 10, kMaxPanels, widen_rows, dense_product<FmaBf16>};
const Kernel kAvx512Int8F32 = {
    "avx512 int8 groups as f32",         Layout::int8_quads, Input::f32, 256 << 10, kMaxPanels, widen_rows,
    expanded_product<Layout::int8_quads>};
const Kernel kAvx512Int4F32 = {
    "avx512 int4 groups as f32",         Layout::int4_quads, Input::f32, 256 << 10, kMaxPanels, widen_rows,
    expanded_product<Layout::int4_quads>};
const Kernel kAvx512Int8 = {"avx512 int8 groups", Layout::int8_quads,           Input::words, 256 << 10, kMaxPanels,
                            quantize_rows<false>, integer_product<Words, false>};
const Kernel kAvx512Int4 = {"avx512 int4 groups", Layout::int4_quads,          Input::words, 256 << 10, kMaxPanels,
                            quantize_rows<false>, integer_product<Words, true>};
const Kernel kAvx512Int8SpansF32 = {"avx512 int8 as f32",
                                    Layout::int8_spans,
                                    Input::f32,
                                    256 << 10,
                                    kMaxPanels,
                                    widen_rows,
                                    expanded_product<Layout::int8_spans>};
const Kernel kAvx512Int4SpansF32 = {"avx512 int4 as f32",
                                    Layout::int4_spans,
                                    Input::f32,
                                    256 << 10,
                                    kMaxPanels,
                                    widen_rows,
                                    expanded_product<Layout::int4_spans>};
const Kernel kAvx512Int8Spans = {
    "avx512 int8", Layout::int8_spans, Input::span_words, 256 << 10, kMaxPanels, word_rows, span_product<SpanWords<false>>};
const Kernel kAvx512Int4Spans = {"avx512 int4", Layout::int4_spans,           Input::span_words, 256 << 10, kMaxPanels,
                                 word_rows,     span_product<SpanWords<true>>};

}  // namespace oarlock::cpu
