// Products of int8 and int4 weights whose codes share a float32 scale over a span of k. Included by kernel files inside their
// unnamed namespaces.
//
// A row of x is rounded to 15-bit integers q (rounding.inl). A span's dot product of codes and q fits 32 bits and is exact,
// whatever instructions make it; then, for spans in order, acc = fma(scale, float(dot), acc), and at the end acc * scale of x.
// So all instruction sets give the same bits.
//
// A Policy gives: Floats, Ints; zero, load, store, scale(v, float), fma(Floats, Ints, Floats); kBlocks, the accumulated rows *
// panels that its registers hold; kTile, the bytes of a tile; and
//   span_dots<R, P>(job, codes[P], x, first, tiles, terms[R], out[R][P]): dot products over some tiles, from the panel's tile
//   `first` on; terms, a row's -128 * sum(q), for a Policy with kTerms, which takes codes as code + 128.
#pragma once

#include "cpu/gemm/drawn.inl"
#include "cpu/gemm/epilogue.inl"
#include "cpu/gemm/rounding.inl"

// R rows by P panels over spans [first, last).
struct SpanJob {
  const uint8_t *x, *terms, *weights;
  const float* scales;
  int64_t stride, term_row, panel_bytes;
  int64_t tiles, span;  // of all k; of a span
  int64_t first, last;
  bool fresh, complete;  // starts from zero; ends with the scales
  float* c;
  Following next;
};

template <class Policy, int R, int P>
__attribute__((noinline)) void span_block(const SpanJob& job) {
  typename Policy::Floats acc[R][P];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) acc[r][p] = job.fresh ? Policy::zero() : Policy::load(job.c + r * kStride + p * kPanel);
  const int64_t record = span_bytes(job.span, Policy::kTile);
  for (int64_t span = job.first; span < job.last; ++span) {
    const int64_t left = job.tiles - span * job.span;
    const uint8_t* codes[P];
    int32_t terms[R];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) codes[p] = job.weights + p * job.panel_bytes + span * record + kSpanScales;
#pragma GCC unroll 4
    for (int r = 0; r < R && Policy::kTerms; ++r) __builtin_memcpy(&terms[r], job.terms + r * job.term_row + span * 4, 4);
    typename Policy::Ints dot[R][P];
    Policy::template span_dots<R, P>(job, codes, job.x + span * job.span * 128, span * job.span,
                                     left < job.span ? left : job.span, terms, dot);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      auto scale = Policy::load(reinterpret_cast<const float*>(codes[p] - kSpanScales));
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][p] = Policy::fma(scale, dot[r][p], acc[r][p]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      auto v = job.complete ? Policy::scale(acc[r][p], job.scales[r]) : acc[r][p];
      Policy::store(job.c + r * kStride + p * kPanel, v);
    }
  }
}

// R rows by all panels of a piece.
template <class Policy, int R>
void span_row(SpanJob job, const Product& product) {
  for (int panel = 0, width; panel < product.panels; panel += width) {
    const int left = product.panels - panel;
    width = 1;
    if (R == 1) job.next = following(product, panel, left >= 4 ? 4 : left >= 2 ? 2 : 1);
    if constexpr (R * 4 <= Policy::kBlocks) {
      if (left >= 4) width = 4, span_block<Policy, R, 4>(job);
    }
    if constexpr (R * 2 <= Policy::kBlocks) {
      if (width == 1 && left >= 2) width = 2, span_block<Policy, R, 2>(job);
    }
    if (width == 1) span_block<Policy, R, 1>(job);
    job.weights += width * job.panel_bytes;
    job.c += width * kPanel;
  }
}

template <class Policy>
void span_product(const Product& product) {
  constexpr int kHeight = Policy::kBlocks < 4 ? Policy::kBlocks : 4;
  const Activations& a = *product.x;
  SpanJob job;
  job.stride = a.stride;
  job.term_row = term_stride(a.k);
  job.panel_bytes = product.panel_bytes;
  job.tiles = whole_tiles(a.k) / 64;
  job.span = span_tiles(a.k);
  // Two spans of four panels stay in the L1 cache.
  const int64_t spans = (job.tiles + job.span - 1) / job.span, chunk = product.rows <= kHeight ? spans : 2;
  const int blocks = (product.rows + kHeight - 1) / kHeight;
  for (job.first = 0; job.first < spans; job.first = job.last) {
    job.last = job.first + chunk < spans ? job.first + chunk : spans;
    job.fresh = job.first == 0;
    job.complete = job.last == spans;
    for (int block = 0, row = 0; block < blocks; ++block) {
      const int height = (product.rows - row + blocks - block - 1) / (blocks - block);
      job.x = a.data + (product.row0 + row) * a.stride;
      job.terms = a.terms + (product.row0 + row) * job.term_row;
      job.scales = a.scales + product.row0 + row;
      job.weights = product.weights;
      job.c = product.c + row * kStride;
      if constexpr (kHeight >= 4) {
        if (height == 4) span_row<Policy, 4>(job, product);
        if (height == 3) span_row<Policy, 3>(job, product);
      }
      if (height == 2) span_row<Policy, 2>(job, product);
      if (height == 1) span_row<Policy, 1>(job, product);
      if (job.complete) finish(product, row, height, 0, product.panels, job.c, kStride);
      row += height;
    }
  }
}
