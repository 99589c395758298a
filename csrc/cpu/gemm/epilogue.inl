// The end of a product: bias or SwiGLU, and rounding. Included by every kernel file inside its unnamed namespace. Written in
// gcc's vector types without fused operations, so that all instruction sets give the same bits.
#pragma once

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
using Lanes = float __attribute__((vector_size(4 * kLanes), may_alias));
using IntLanes = int32_t __attribute__((vector_size(4 * kLanes), may_alias));
using BitLanes = uint32_t __attribute__((vector_size(4 * kLanes), may_alias));
using HalfLanes = uint16_t __attribute__((vector_size(2 * kLanes), may_alias));

OARLOCK_INLINE Lanes load_lanes(const float* from) {
  Lanes v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

// e^x to about 2 ulp: 2^n * 2^f, |f| <= 1/2, the latter a polynomial.
OARLOCK_INLINE Lanes exponential(Lanes x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Lanes t = x * 1.44269504088896341f;
  t = t > 126.0f ? t - t + 126.0f : t;
  t = t < -126.0f ? t - t - 126.0f : t;
  Lanes shifted = t + kMagic;
  Lanes f = t - (shifted - kMagic);
  Lanes p = f * 1.5353362e-4f + 1.3398874e-3f;
  p = p * f + 9.6184370e-3f;
  p = p * f + 5.5503324e-2f;
  p = p * f + 2.4022648e-1f;
  p = p * f + 6.9314720e-1f;
  p = p * f + 1.0f;
  return (Lanes)((IntLanes)p + (((IntLanes)shifted - 0x4b400000) << 23));
}

OARLOCK_INLINE Lanes silu(Lanes x) { return x / (1.0f + exponential(-x)); }

OARLOCK_INLINE HalfLanes round_to_bf16(Lanes value) {
#ifdef __AVX512BF16__
  return (HalfLanes)_mm512_cvtneps_pbh((__m512)value);  // differs for subnormal numbers only, which become 0
#else
  BitLanes bits = (BitLanes)value;
  BitLanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  BitLanes nan = (bits >> 16) | 0x40u;
  return __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded, HalfLanes);
#endif
}

template <typename Vector, typename Element>
OARLOCK_INLINE void store_lanes(Element* out, Vector v, int64_t valid) {
  if (valid >= kLanes) {
    __builtin_memcpy(out, &v, sizeof v);
  } else {
    for (int64_t i = 0; i < valid; ++i) out[i] = v[i];
  }
}

OARLOCK_INLINE void store(const Product& job, Lanes v, int64_t row, int64_t col) {
  if (job.out_dtype == DType::f32) {
    store_lanes(static_cast<float*>(job.out) + row * job.out_stride + col, v, job.cols - col);
  } else {
    store_lanes(static_cast<uint16_t*>(job.out) + row * job.out_stride + col, round_to_bf16(v), job.cols - col);
  }
}

// Rows and panels of a piece of work, counted within it, from complete sums c (rows `stride` floats apart).
void finish(const Product& job, int first_row, int rows, int panel, int panels, const float* c, int stride) {
  for (int row = 0; row < rows; ++row, c += stride) {
    if (job.gated) {
      for (int col = 0; col < panels / 2 * kPanel; col += kLanes) {
        const float* gate = c + col / kPanel * 2 * kPanel + col % kPanel;
        Lanes v = silu(load_lanes(gate) * job.unit) * (load_lanes(gate + kPanel) * job.unit);
        store(job, v, first_row + row, panel / 2 * kPanel + col);
      }
      continue;
    }
    for (int col = 0; col < panels * kPanel; col += kLanes) {
      int64_t at = panel * kPanel + col;
      Lanes v = load_lanes(c + col) * job.unit;
      if (job.bias && at + kLanes <= job.cols) {
        v += load_lanes(job.bias + at);
      } else if (job.bias) {
        for (int i = 0; at + i < job.cols; ++i) v[i] += job.bias[at + i];
      }
      store(job, v, first_row + row, at);
    }
  }
}
