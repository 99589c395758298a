// Kernels for AVX2 and FMA, the least that the engine runs on: float32 FMA, and 16-bit integer products for int8 and int4.
#include <immintrin.h>

#include "cpu/gemm/kernel.h"

namespace oarlock::cpu {
namespace {

struct Simd {
  struct Floats {
    __m256 low, high;
  };
  using Broadcast = __m256;
  static constexpr int kAccumulators = 6;
  OARLOCK_INLINE Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  OARLOCK_INLINE Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  OARLOCK_INLINE void store(float* to, Floats v) {
    _mm256_storeu_ps(to, v.low);
    _mm256_storeu_ps(to + 8, v.high);
  }
  OARLOCK_INLINE Broadcast broadcast(const float* from) { return _mm256_broadcast_ss(from); }
  OARLOCK_INLINE Floats fma(Broadcast a, Floats w, Floats acc) {
    return {_mm256_fmadd_ps(a, w.low, acc.low), _mm256_fmadd_ps(a, w.high, acc.high)};
  }
  OARLOCK_INLINE __m256i words(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  OARLOCK_INLINE Floats even_bf16(const uint8_t* from) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(words(from), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(words(from + 32), 16))};
  }
  OARLOCK_INLINE Floats odd_bf16(const uint8_t* from) {
    const __m256i mask = _mm256_set1_epi32(int(0xffff0000u));
    return {_mm256_castsi256_ps(_mm256_and_si256(words(from), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(words(from + 32), mask))};
  }
  OARLOCK_INLINE Floats from_f16(const uint8_t* from) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
};

// Codes widened to 16 bits against q itself: pairs of products in 32 bits (VPMADDWD), then their sums by column.
struct Words {
  using Floats = Simd::Floats;
  struct Ints {
    __m256i low, high;
  };
  static constexpr int kBlocks = 2;

  OARLOCK_INLINE Floats zero() { return Simd::zero(); }
  OARLOCK_INLINE Floats load(const float* from) { return Simd::load(from); }
  OARLOCK_INLINE void store(float* to, Floats v) { Simd::store(to, v); }
  OARLOCK_INLINE Floats scale(Floats v, float by) {
    return {_mm256_mul_ps(v.low, _mm256_set1_ps(by)), _mm256_mul_ps(v.high, _mm256_set1_ps(by))};
  }
  OARLOCK_INLINE Floats from_f16(const uint8_t* from) { return Simd::from_f16(from); }
  OARLOCK_INLINE Floats fma(Floats d, Ints dot, Floats acc) {
    return {_mm256_fmadd_ps(d.low, _mm256_cvtepi32_ps(dot.low), acc.low),
            _mm256_fmadd_ps(d.high, _mm256_cvtepi32_ps(dot.high), acc.high)};
  }
  OARLOCK_INLINE Floats fma_term(Floats m, const uint8_t* term, Floats acc) {
    return Simd::fma(_mm256_broadcast_ss(reinterpret_cast<const float*>(term)), m, acc);
  }

  // Four columns' codes of four k, as 16-bit words; quarter 0..3 says which columns.
  template <bool kInt4>
  OARLOCK_INLINE __m256i widen(const uint8_t* codes, int quad, int quarter) {
    const uint8_t* from = codes + (kInt4 ? quad / 2 : quad) * 64 + quarter * 16;
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if (kInt4) bytes = _mm_and_si128(quad % 2 ? _mm_srli_epi16(bytes, 4) : bytes, _mm_set1_epi8(15));
    return _mm256_cvtepu8_epi16(bytes);
  }

  // Sums of neighbours: of columns 0-3 and 4-7 to those of 0-7.
  OARLOCK_INLINE __m256i columns(__m256i first, __m256i second) {
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(first, second), 0xd8);
  }

  template <int R, int P, bool kInt4>
  OARLOCK_INLINE void dots(const uint8_t* const* codes, const uint8_t* x, int64_t stride, const int32_t* start,
                           Ints (*out)[P]) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      __m256i sums[R][4];  // of k pairs, four columns each
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; ++quarter) sums[r][quarter] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int quad = 0; quad < 8; ++quad) {
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; ++quarter) {
          __m256i w = widen<kInt4>(codes[p], quad, quarter);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            int64_t four;
            __builtin_memcpy(&four, x + r * stride + quad * 8, 8);
            sums[r][quarter] = _mm256_add_epi32(sums[r][quarter], _mm256_madd_epi16(w, _mm256_set1_epi64x(four)));
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m256i base = _mm256_set1_epi32(kInt4 ? 0 : start[r]);
        out[r][p] = {_mm256_add_epi32(columns(sums[r][0], sums[r][1]), base),
                     _mm256_add_epi32(columns(sums[r][2], sums[r][3]), base)};
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
    alignas(64) uint8_t opened[kInt8Tile];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      __m256i sums[R][4];  // of k pairs, four columns each
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; ++quarter) sums[r][quarter] = _mm256_setzero_si256();
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const uint8_t* from = codes[p] + tile * kTile;
        if (kInt4) {
          open_tile(from, opened);
          from = opened;
        }
        for (int quad = 0; quad < 16; ++quad) {
#pragma GCC unroll 4
          for (int quarter = 0; quarter < 4; ++quarter) {
            __m256i w = _mm256_cvtepi8_epi16(*reinterpret_cast<const __m128i*>(from + quad * 64 + quarter * 16));
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
              int64_t four;
              __builtin_memcpy(&four, x + r * job.stride + (tile * 16 + quad) * 8, 8);
              sums[r][quarter] = _mm256_add_epi32(sums[r][quarter], _mm256_madd_epi16(w, _mm256_set1_epi64x(four)));
            }
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        out[r][p] = {columns(sums[r][0], sums[r][1]), columns(sums[r][2], sums[r][3])};
      }
    }
  }
};

}  // namespace

const Kernel kAvx2F32 = {"avx2 f32", Layout::f32, Input::f32, 256 << 10, kMaxPanels, widen_rows, dense_product<FmaF32>};
const Kernel kAvx2Bf16 = {"avx2 bf16", Layout::bf16, Input::f32, 256 << 10, kMaxPanels, widen_rows, dense_product<FmaBf16>};
const Kernel kAvx2Int8F32 = {
    "avx2 int8 groups as f32",           Layout::int8_quads, Input::f32, 256 << 10, kMaxPanels, widen_rows,
    expanded_product<Layout::int8_quads>};
const Kernel kAvx2Int4F32 = {
    "avx2 int4 groups as f32",           Layout::int4_quads, Input::f32, 256 << 10, kMaxPanels, widen_rows,
    expanded_product<Layout::int4_quads>};
const Kernel kAvx2Int8 = {"avx2 int8 groups",   Layout::int8_quads,           Input::words, 256 << 10, kMaxPanels,
                          quantize_rows<false>, integer_product<Words, false>};
const Kernel kAvx2Int4 = {"avx2 int4 groups",   Layout::int4_quads,          Input::words, 256 << 10, kMaxPanels,
                          quantize_rows<false>, integer_product<Words, true>};
const Kernel kAvx2Int8SpansF32 = {"avx2 int8 as f32",
                                  Layout::int8_spans,
                                  Input::f32,
                                  256 << 10,
                                  kMaxPanels,
                                  widen_rows,
                                  expanded_product<Layout::int8_spans>};
const Kernel kAvx2Int4SpansF32 = {"avx2 int4 as f32",
                                  Layout::int4_spans,
                                  Input::f32,
                                  256 << 10,
                                  kMaxPanels,
                                  widen_rows,
                                  expanded_product<Layout::int4_spans>};
const Kernel kAvx2Int8Spans = {
    "avx2 int8", Layout::int8_spans, Input::span_words, 256 << 10, kMaxPanels, word_rows, span_product<SpanWords<false>>};
const Kernel kAvx2Int4Spans = {"avx2 int4", Layout::int4_spans,           Input::span_words, 256 << 10, kMaxPanels,
                               word_rows,   span_product<SpanWords<true>>};

}  // namespace oarlock::cpu
