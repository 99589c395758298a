// Rows of x as the 16-bit integers that spans.inl multiplies on AVX2 and AVX-512. Included inside unnamed namespaces.
#pragma once

#include "cpu/gemm/rounding.inl"

void word_rows(const Prepare& job, int64_t first, int64_t last) {
  const int64_t k = job.x.cols;
  for (int64_t row = first; row < last; ++row) {
    const uint16_t* from = job.x.as<uint16_t>() + row * job.x.stride;
    uint16_t greatest = 0;
    for (int64_t i = 0; i < k; ++i) {
      uint16_t bits = from[i] & 0x7fff;
      greatest = bits > greatest ? bits : greatest;
    }
    const RowScale scale = row_scale(greatest);
    job.scales[row] = scale.scale;
    int16_t* to = reinterpret_cast<int16_t*>(job.data + row * job.stride);
    for (int64_t i = 0; i < k; ++i) {
      uint32_t bits = uint32_t(from[i]) << 16;
      float value;
      __builtin_memcpy(&value, &bits, 4);
      value = __builtin_fmaf(value, scale.inverse, kMagic);
      int32_t q;
      __builtin_memcpy(&q, &value, 4);
      to[i] = int16_t(q - kMagicBits);
    }
    for (int64_t i = k; i < whole_tiles(k); ++i) to[i] = 0;
  }
}
