// Powers of two of scores, rounded to bf16, 32 at a time (AVX-512 BW and VBMI): the exponentials of attention on AMX.
//
// A bf16 number's bits, read as an integer, are nearly its logarithm: exponent and fraction are those of log2 x, but that the
// mantissa is 2^f - 1 where the logarithm has f. So a scaled score, shifted and rounded to eight places after the point, needs
// only a correction that a table knows by the first six of them. Relative errors are under 0.007, 0.002 at the root mean
// square; rounding alone is 0.004 and 0.0016. Those below 2^-126 become zero, those from 2^128 on infinite or not a number.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

namespace oarlock::cpu::amx {
namespace {

// 256 (1 + f - 2^f) in the middle of each 64th.
struct Corrections {
  alignas(64) uint8_t of[64];
  constexpr Corrections() : of() {
    double power = 1;  // 2^(i / 256)
    for (int i = 0; i < 64; ++i) {
      double sum = 0;
      for (int j = 0; j < 4; ++j, power *= 1.0027112750502025) sum += 256 * (1 - power) + 4 * i + j;
      of[i] = uint8_t(sum / 4 + 0.5);
    }
  }
};
constexpr Corrections kCorrections;

class Powers {
 public:
  explicit Powers(float scale)
      : factor_(_mm512_set1_ps(scale * 256)),
        corrections_(_mm512_load_si512(kCorrections.of)),
        order_(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7)) {}

  // Whether a shift can be taken exactly.
  static bool takes(float shift) { return shift <= 16384 && shift >= -16384; }
  // What of() wants for a whole number. The half makes up for bits that are cut off.
  static float shifted(float shift) { return (shift + 127) * 256 + 0.5f; }

  // 2^(scale * score + shift) of 32 scores. A score that is no number, or more than 2^23 above -shift, counts as -inf.
  __m512i of(const float* scores, float shifted) const {
    const __m512 shift = _mm512_set1_ps(shifted);
    __m512i x = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_load_ps(scores), factor_, shift));
    __m512i y = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_load_ps(scores + 16), factor_, shift));
    __m512i t = _mm512_permutexvar_epi64(order_, _mm512_packus_epi32(x, y));
    __m512i more = _mm512_maskz_permutexvar_epi8(0x5555555555555555, _mm512_srli_epi16(t, 2), corrections_);
    return _mm512_srli_epi16(_mm512_sub_epi16(t, more), 1);
  }

 private:
  const __m512 factor_;
  const __m512i corrections_, order_;
};

}  // namespace
}  // namespace oarlock::cpu::amx
