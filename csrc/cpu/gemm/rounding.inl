// A row of x in bf16 as 15-bit integers under one scale: what integer.inl and spans.inl share. Included by kernel files
// inside their unnamed namespaces.
#pragma once

constexpr int kLargest = 127 * 128;    // of |q|: a high digit of 7 bits and a sign, a low one of -64..63
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
constexpr int32_t kMagicBits = 0x4b400000;

struct RowScale {
  float scale, inverse;
};

// Of a row whose largest |x| has these bits; infinities and NaN come last and make the whole row NaN.
OARLOCK_INLINE RowScale row_scale(uint16_t greatest) {
  uint32_t bits = uint32_t(greatest) << 16;
  float most;
  __builtin_memcpy(&most, &bits, 4);
  if (bits >= 0x7f800000) return {__builtin_nanf(""), 0};
  return {most / float(kLargest), most < 1e-30f ? 0.0f : float(kLargest) / most};
}
