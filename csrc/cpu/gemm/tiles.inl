// What all kernels on tiles share: their configuration, drawing in the next weights, the end of a product. Included by
// gemm_amx.cpp and gemm_amx_int8.cpp.
#pragma once

#include "cpu/gemm/epilogue.inl"

constexpr int64_t kTile = 1024;  // bytes

// Tiles 0-3 accumulate, 4 and 5 hold rows of x, 6 and 7 panels. `rows` is 16, or the height of a single, shorter block.
void configure_tiles(int rows) {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = uint8_t(tile <= 4 ? rows : 16);
  }
  // gcc 12 believes that the instruction reads 8 bytes only, and would drop the stores to the rest.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Weights of the next pair of panels, drawn into the L2 cache a few lines with every step: tile loads alone wait for memory.
struct Ahead {
  const uint8_t *first = nullptr, *second = nullptr;
  int lines = 0;  // a step

  Ahead() = default;
  Ahead(const uint8_t* from, int64_t panel_bytes, int64_t bytes, int64_t steps)
      : first(from), second(from + panel_bytes), lines(int((bytes / 64 + steps - 1) / steps)) {}
  void step() {
    for (int line = 0; line < lines; ++line, first += 64, second += 64) {
      _mm_prefetch(first, _MM_HINT_T1);
      _mm_prefetch(second, _MM_HINT_T1);
    }
  }
};

// silu(gate) * up to about 3 ulp, without a division and with the exponent's own instructions.
OARLOCK_INLINE __m512 gated_value(__m512 gate, __m512 up) {
  const __m512 one = _mm512_set1_ps(1.0f), most = _mm512_set1_ps(126.0f), least = _mm512_set1_ps(-126.0f);
  __m512 x = _mm512_mul_ps(gate, _mm512_set1_ps(-1.44269504088896341f));
  x = _mm512_min_ps(_mm512_max_ps(x, least), most);
  __m512 fraction = _mm512_reduce_ps(x, 0), whole = _mm512_sub_ps(x, fraction);
  __m512 p = _mm512_set1_ps(1.3398874e-3f);
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(9.6184370e-3f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(5.5503324e-2f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(2.4022648e-1f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(6.9314720e-1f));
  p = _mm512_fmadd_ps(p, fraction, one);
  __m512 below = _mm512_add_ps(_mm512_scalef_ps(p, whole), one);  // 1 + e^-gate
  __m512 inverse = _mm512_rcp14_ps(below);
  inverse = _mm512_fmadd_ps(inverse, _mm512_fnmadd_ps(below, inverse, one), inverse);
  return _mm512_mul_ps(_mm512_mul_ps(gate, inverse), up);  // a gate that is not a number shows here
}

// The same to 2e-4, a tenth of what rounding it to bf16 then adds.
OARLOCK_INLINE __m512 rounded_gated_value(__m512 gate, __m512 up) {
  const __m512 one = _mm512_set1_ps(1.0f);
  __m512 x = _mm512_mul_ps(gate, _mm512_set1_ps(-1.44269504088896341f));
  __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
  __m512 p = _mm512_set1_ps(0.07706563f);
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.22764654f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(0.69511644f));
  p = _mm512_fmadd_ps(p, fraction, one);
  __m512 below = _mm512_add_ps(_mm512_scalef_ps(p, x), one);  // 1 + e^-gate
  return _mm512_mul_ps(_mm512_mul_ps(gate, _mm512_rcp14_ps(below)), up);
}

// Whichever of the two is wanted.
OARLOCK_INLINE Lanes gated_result(const Product& job, __m512 gate, __m512 up) {
  return (Lanes)(job.out_dtype == DType::bf16 ? rounded_gated_value(gate, up) : gated_value(gate, up));
}

// As finish() of epilogue.inl, for any number of rows.
OARLOCK_INLINE void finish_sums(const Product& job, int first_row, int rows, int panel, int panels, const float* c,
                                int stride) {
  if (!job.gated) return finish(job, first_row, rows, panel, panels, c, stride);
  const __m512 unit = _mm512_set1_ps(job.unit);
  for (int row = first_row; row < first_row + rows; ++row, c += stride) {
    for (int pair = 0; pair < panels; pair += 2) {
      __m512 gate = _mm512_loadu_ps(c + pair * kPanel), up = _mm512_loadu_ps(c + (pair + 1) * kPanel);
      Lanes value = gated_result(job, _mm512_mul_ps(gate, unit), _mm512_mul_ps(up, unit));
      store(job, value, row, (panel + pair) / 2 * kPanel);
    }
  }
}
