// One row of x by quantized panels in vector registers, with the bits that tiles would give. Included by gemm_amx.cpp.
//
// TDPBF16PS is, for 32 of k, two chains of fused multiply-adds from zero, over even and over odd k, then their sum onto the
// output, all with subnormal numbers taken for zero. Expanding weights in registers and multiplying there takes nine
// instructions for 32 of them, less than writing tiles and loading them, and a single row does not wake the tile unit. From two
// rows on, tiles are as fast.
#pragma once

#include "cpu/gemm/drawn.inl"
#include "cpu/gemm/tile_blocks.inl"
#include "cpu/gemm/tile_expand.inl"

// Subnormal numbers are zero in its scope.
class SubnormalsAreZero {
 public:
  SubnormalsAreZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~SubnormalsAreZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};

// A row of x as floats, raised as in tiles.
OARLOCK_INLINE void widen_row(const uint16_t* from, int64_t k, float* to) {
  for (int64_t i = 0; i < k; i += kTileK) {
    __m512i x = raise(_mm512_loadu_si512(from + i));
    __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(x));
    __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1));
    _mm512_store_si512(to + i, _mm512_slli_epi32(low, 16));
    _mm512_store_si512(to + i + 16, _mm512_slli_epi32(high, 16));
  }
}

// By panels from first_panel on; their sums to job.c.
template <bool kInt4, int kPanels>
__attribute__((noinline)) void row_block(const Product& job, int first_panel) {
  const __m256h shift = _mm256_set1_ph(_Float16(job.shift));
  const __m512i kept = _mm512_set1_epi32(int(0x8fff0000u));  // of a narrowed weight in the upper half, see shorten()
  constexpr int64_t kTileBytes = (kInt4 ? kInt4Record : kInt8Record) / 2;
  constexpr int64_t kAhead = 4096 / kTileBytes;
  const Following next = following(job, first_panel, kPanels);
  const uint8_t* weights = job.weights + first_panel * job.panel_bytes;
  const float* x = reinterpret_cast<const float*>(job.x->data);
  const int64_t tiles = job.x->k / kTileK;
  __m512 sums[kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) sums[p] = _mm512_setzero_ps();
  for (int64_t tile = 0; tile < tiles; ++tile, x += kTileK) {
    __m512 even[kPanels], odd[kPanels];
    __m512h d[kPanels], m[kPanels];
    const uint8_t* codes[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      GroupView view = group_view<kInt4>(weights + p * job.panel_bytes, tile);
      codes[p] = view.codes;
      d[p] = by_column(view.d, shift);
      if (kInt4) m[p] = by_column(view.m, shift);
      even[p] = odd[p] = _mm512_setzero_ps();
    }
    const Drawn drawn = next.draw<kAhead, kTileBytes, 0>(weights + tile * kTileBytes, job.panel_bytes, tile, tiles);
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) draw_group<kInt4>(drawn.from + p * drawn.panel);
#pragma GCC unroll 16
    for (int row = 0; row < kTileK / 2; ++row) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        __m512i w = shorten(kInt4 ? int4_weights(codes[p], row, d[p], m[p]) : int8_weights(codes[p], row, d[p]));
        __m512 first = _mm512_castsi512_ps(_mm512_and_si512(_mm512_slli_epi32(w, 16), kept));
        __m512 second = _mm512_castsi512_ps(_mm512_and_si512(w, kept));
        even[p] = _mm512_fmadd_ps(_mm512_set1_ps(x[2 * row]), first, even[p]);
        odd[p] = _mm512_fmadd_ps(_mm512_set1_ps(x[2 * row + 1]), second, odd[p]);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) sums[p] = _mm512_add_ps(sums[p], _mm512_add_ps(even[p], odd[p]));
  }
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) _mm512_store_ps(job.c + p * kPanel, sums[p]);
}

// By up to four panels at once: several streams read faster than one.
template <bool kInt4>
void one_row(const Product& job, int panel, int width) {
  SubnormalsAreZero scope;
  if (width == 4) row_block<kInt4, 4>(job, panel);
  if (width == 3) row_block<kInt4, 3>(job, panel);
  if (width == 2) row_block<kInt4, 2>(job, panel);
  if (width == 1) row_block<kInt4, 1>(job, panel);
}
