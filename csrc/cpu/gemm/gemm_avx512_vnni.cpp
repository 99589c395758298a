// Integer products by VPDPBUSD: unsigned codes by the signed digits of x.
#include <immintrin.h>

#include "cpu/gemm/kernel.h"

namespace oarlock::cpu {
namespace {

struct Vnni {
  using Floats = __m512;
  using Ints = __m512i;
  static constexpr int kBlocks = 8;

  OARLOCK_INLINE Floats zero() { return _mm512_setzero_ps(); }
  OARLOCK_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
  OARLOCK_INLINE void store(float* to, Floats v) { _mm512_storeu_ps(to, v); }
  OARLOCK_INLINE Floats scale(Floats v, float by) { return _mm512_mul_ps(v, _mm512_set1_ps(by)); }
  OARLOCK_INLINE Floats from_f16(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  OARLOCK_INLINE Floats fma(Floats d, Ints dot, Floats acc) { return _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(dot), acc); }
  OARLOCK_INLINE Floats fma_term(Floats m, const uint8_t* term, Floats acc) {
    return _mm512_fmadd_ps(m, _mm512_set1_ps(*reinterpret_cast<const float*>(term)), acc);
  }

  OARLOCK_INLINE Ints broadcast4(const uint8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
  }

  // 128 * dot(high digits) + dot(low digits).
  template <int R, int P, bool kInt4>
  OARLOCK_INLINE void dots(const uint8_t* const* codes, const uint8_t* x, int64_t stride, const int32_t* start,
                           Ints (*out)[P]) {
    Ints high[R][P], low[R][P];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        high[r][p] = _mm512_setzero_si512();
        low[r][p] = kInt4 ? _mm512_setzero_si512() : _mm512_set1_epi32(start[r]);
      }
    }
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad) {
      Ints w[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        if (kInt4) {
          Ints both = _mm512_loadu_si512(codes[p] + quad / 2 * 64);
          w[p] = _mm512_and_si512(quad % 2 ? _mm512_srli_epi16(both, 4) : both, _mm512_set1_epi8(15));
        } else {
          w[p] = _mm512_loadu_si512(codes[p] + quad * 64);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        Ints upper = broadcast4(x + r * stride + quad * 4), lower = broadcast4(x + r * stride + kGroup + quad * 4);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          high[r][p] = _mm512_dpbusd_epi32(high[r][p], w[p], upper);
          low[r][p] = _mm512_dpbusd_epi32(low[r][p], w[p], lower);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) out[r][p] = _mm512_add_epi32(_mm512_slli_epi32(high[r][p], 7), low[r][p]);
  }
};

#include "cpu/gemm/integer.inl"
#include "cpu/gemm/span_digits.inl"

}  // namespace

const Kernel kVnniInt8 = {"avx512_vnni int8 groups", Layout::int8_quads,          Input::digits, 256 << 10, kMaxPanels,
                          quantize_rows<true>,       integer_product<Vnni, false>};
const Kernel kVnniInt4 = {"avx512_vnni int4 groups", Layout::int4_quads,         Input::digits, 256 << 10, kMaxPanels,
                          quantize_rows<true>,       integer_product<Vnni, true>};
const Kernel kVnniInt8Spans = {"avx512_vnni int8", Layout::int8_spans, Input::span_digits,         256 << 10,
                               kMaxPanels,         digit_rows,         span_product<Digits<false>>};
const Kernel kVnniInt4Spans = {"avx512_vnni int4", Layout::int4_spans, Input::span_digits,        256 << 10,
                               kMaxPanels,         digit_rows,         span_product<Digits<true>>};

}  // namespace oarlock::cpu
