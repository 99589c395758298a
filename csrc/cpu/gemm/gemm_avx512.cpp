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

#include "cpu/gemm/dense.inl"
#include "cpu/gemm/epilogue.inl"
#include "cpu/gemm/fma_kernels.inl"

}  // namespace

const Kernel kAvx512F32 = {"avx512 f32", Layout::f32, Input::f32, 256 << 10, widen_rows, dense_product<FmaF32>, finish};
const Kernel kAvx512Bf16 = {"avx512 bf16", Layout::bf16, Input::f32, 256 << 10, widen_rows, dense_product<FmaBf16>, finish};
const Kernel kAvx512Int8F32 = {"avx512 int8 as f32", Layout::int8_quads,      Input::f32, 256 << 10,
                               widen_rows,           expanded_product<false>, finish};
const Kernel kAvx512Int4F32 = {"avx512 int4 as f32", Layout::int4_quads,     Input::f32, 256 << 10,
                               widen_rows,           expanded_product<true>, finish};

}  // namespace oarlock::cpu
