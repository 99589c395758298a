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

#include "cpu/gemm/dense.inl"
#include "cpu/gemm/epilogue.inl"
#include "cpu/gemm/fma_kernels.inl"

}  // namespace

const Kernel kAvx2F32 = {"avx2 f32", Layout::f32, Input::f32, 256 << 10, widen_rows, dense_product<FmaF32>, finish};
const Kernel kAvx2Bf16 = {"avx2 bf16", Layout::bf16, Input::f32, 256 << 10, widen_rows, dense_product<FmaBf16>, finish};
const Kernel kAvx2Int8F32 = {"avx2 int8 as f32", Layout::int8_quads,      Input::f32, 256 << 10,
                             widen_rows,         expanded_product<false>, finish};
const Kernel kAvx2Int4F32 = {"avx2 int4 as f32", Layout::int4_quads,     Input::f32, 256 << 10,
                             widen_rows,         expanded_product<true>, finish};

}  // namespace oarlock::cpu
