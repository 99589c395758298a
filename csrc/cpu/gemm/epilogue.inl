// The end of a product: bias or SwiGLU, and rounding. Included by every kernel file inside its unnamed namespace; plain
// loops with every fused operation written out, so that all instruction sets give the same bits.

// e^x to 1 ulp or so: 2^n * 2^f, |f| <= 1/2, the latter a Taylor polynomial.
OARLOCK_INLINE float exponential(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  float t = x * 1.44269504088896341f;
  t = t > 126.0f ? 126.0f : t;
  t = t < -126.0f ? -126.0f : t;
  float shifted = t + kMagic;
  float f = t - (shifted - kMagic);
  int32_t n;
  __builtin_memcpy(&n, &shifted, 4);
  float p = 1.5353362e-4f;
  p = __builtin_fmaf(p, f, 1.3398874e-3f);
  p = __builtin_fmaf(p, f, 9.6184370e-3f);
  p = __builtin_fmaf(p, f, 5.5503324e-2f);
  p = __builtin_fmaf(p, f, 2.4022648e-1f);
  p = __builtin_fmaf(p, f, 6.9314720e-1f);
  p = __builtin_fmaf(p, f, 1.0f);
  uint32_t bits;
  __builtin_memcpy(&bits, &p, 4);
  bits += uint32_t(n - 0x4b400000) << 23;
  float out;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

OARLOCK_INLINE float silu(float x) { return x / (1.0f + exponential(-x)); }

OARLOCK_INLINE uint16_t round_to_bf16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  uint32_t nan = (bits >> 16) | 0x40;
  return uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

OARLOCK_INLINE void store_panel(const float* v, const Finish& f, int64_t row, int64_t col) {
  int64_t valid = f.cols - col;
  if (f.dtype == DType::f32) {
    float* out = static_cast<float*>(f.out) + row * f.stride + col;
    if (valid >= kPanel) {
      for (int i = 0; i < kPanel; ++i) out[i] = v[i];
    } else {
      for (int i = 0; i < valid; ++i) out[i] = v[i];
    }
  } else {
    uint16_t rounded[kPanel];
    for (int i = 0; i < kPanel; ++i) rounded[i] = round_to_bf16(v[i]);
    uint16_t* out = static_cast<uint16_t*>(f.out) + row * f.stride + col;
    if (valid >= kPanel) {
      for (int i = 0; i < kPanel; ++i) out[i] = rounded[i];
    } else {
      for (int i = 0; i < valid; ++i) out[i] = rounded[i];
    }
  }
}

void finish(const Finish& f) {
  alignas(64) float v[kPanel];
  if (f.gated) {
    for (int row = 0; row < f.rows; ++row) {
      for (int pair = 0; 2 * pair < f.panels; ++pair) {
        const float* gate = f.c + row * kStride + 2 * pair * kPanel;
        const float* up = gate + kPanel;
        for (int i = 0; i < kPanel; ++i) v[i] = silu(gate[i]) * up[i];
        store_panel(v, f, row, pair * kPanel);
      }
    }
    return;
  }
  alignas(64) float bias[kStride] = {};
  if (f.bias)
    for (int i = 0; i < kStride && i < f.cols; ++i) bias[i] = f.bias[i];
  for (int row = 0; row < f.rows; ++row) {
    for (int panel = 0; panel < f.panels; ++panel) {
      const float* c = f.c + row * kStride + panel * kPanel;
      for (int i = 0; i < kPanel; ++i) v[i] = c[i] + bias[panel * kPanel + i];
      store_panel(v, f, row, panel * kPanel);
    }
  }
}
