// Element types, and the conversions between them that every part agrees on (round to nearest even).
#pragma once

#include <cstdint>
#include <cstring>

namespace oarlock {

enum class DType : uint8_t { f32, f16, bf16, i32, i8, u8 };

constexpr int size_of(DType type) {
  return type == DType::f32 || type == DType::i32 ? 4 : type == DType::f16 || type == DType::bf16 ? 2 : 1;
}

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline float to_float(bf16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline bf16 to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t((bits >> 16) | 0x40)};  // NaN stays NaN
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}

inline float to_float(f16 value) {
  uint32_t sign = uint32_t(value.bits & 0x8000) << 16, exponent = (value.bits >> 10) & 31, mantissa = value.bits & 1023;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    float subnormal = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&bits, &subnormal, 4);
    bits |= sign;
  }
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

}  // namespace oarlock
