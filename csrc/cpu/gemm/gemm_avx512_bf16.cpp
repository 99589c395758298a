// bf16 products by VDPBF16PS, for machines that have AVX-512 BF16 but no tiles (Zen 4 and 5, Cooper Lake).
#include <immintrin.h>

#include "cpu/gemm/kernel.h"

namespace oarlock::cpu {
namespace {

struct DotBf16 {
  using Vec = __m512;
  static constexpr int kMaxRegisters = 24, kSteps = 1, kChunk = 256;
  OARLOCK_INLINE Vec zero() { return _mm512_setzero_ps(); }
  OARLOCK_INLINE Vec load(const float* from) { return _mm512_loadu_ps(from); }
  OARLOCK_INLINE void store(float* to, Vec v) { _mm512_storeu_ps(to, v); }
  OARLOCK_INLINE Vec weight(const uint8_t* panel, int64_t pair, int) { return _mm512_loadu_ps(panel + pair * 64); }
  OARLOCK_INLINE Vec activation(const uint8_t* row, int64_t pair, int) {
    int32_t two;
    __builtin_memcpy(&two, row + pair * 4, 4);
    return _mm512_castsi512_ps(_mm512_set1_epi32(two));
  }
  OARLOCK_INLINE Vec step(Vec acc, Vec a, Vec w) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)w); }
};

#include "cpu/gemm/dense.inl"

}  // namespace

const Kernel kDotBf16 = {"avx512_bf16 bf16", Layout::bf16, Input::as_is,          256 << 10,
                         kMaxPanels,         nullptr,      dense_product<DotBf16>};

}  // namespace oarlock::cpu
