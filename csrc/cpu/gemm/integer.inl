// Products of int8 and int4 weights by integer dot products. Included by kernel files inside their unnamed namespaces.
//
// A row of x is rounded to 15-bit integers q under one scale. A group's dot product of codes and q is exact in 32 bits,
// whatever instructions make it; then, for groups in order, acc = fma(d, float(dot), acc), for int4 also
// acc = fma(m, float(sum q), acc), and at the end acc * scale. So all instruction sets give the same bits.
//
// A Policy gives: Floats, Ints; zero, load, store, scale(v, float), from_f16, broadcast(float), fma(Floats, Ints, Floats) and
// fma(Floats, Floats, Floats); kDigits (its form of q); kBlocks, the accumulated rows * panels that its registers hold; and
//   dots<R, P, kInt4>(codes[P], x, stride, terms[R], out[R][P]): one group's dot products, started from the terms.
#pragma once

#include "cpu/gemm/epilogue.inl"
#include "cpu/gemm/rounding.inl"

// Row by row: q in the policy's form (digits: 32 high then 32 low bytes a group; words: int16), terms and scale.
template <bool kDigits>
void quantize_rows(const Prepare& job, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const uint16_t* from = job.x.as<uint16_t>() + row * job.x.stride;
    uint16_t greatest = 0;
    for (int64_t i = 0; i < job.x.cols; ++i) {
      uint16_t bits = from[i] & 0x7fff;
      greatest = bits > greatest ? bits : greatest;
    }
    const RowScale scale = row_scale(greatest);
    job.scales[row] = scale.scale;
    uint8_t* to = job.data + row * job.stride;
    uint8_t* terms = job.terms + row * term_stride(job.x.cols);
    for (int64_t group = 0; group < job.x.cols / kGroup; ++group, from += kGroup, to += 2 * kGroup, terms += 4) {
      int32_t q[kGroup], sum = 0;
      for (int i = 0; i < kGroup; ++i) {
        uint32_t bits = uint32_t(from[i]) << 16;
        float value;
        __builtin_memcpy(&value, &bits, 4);
        value = __builtin_fmaf(value, scale.inverse, kMagic);
        int32_t rounded;
        __builtin_memcpy(&rounded, &value, 4);
        q[i] = rounded - kMagicBits;
        sum += q[i];
      }
      if (kDigits) {
        for (int i = 0; i < kGroup; ++i) {
          int32_t high = (q[i] + 64) >> 7;
          to[i] = uint8_t(high);
          to[i + kGroup] = uint8_t(q[i] - high * 128);
        }
      } else {
        for (int i = 0; i < kGroup; ++i) {
          int16_t word = int16_t(q[i]);
          __builtin_memcpy(to + 2 * i, &word, 2);
        }
      }
      if (job.int4) {
        float term = float(sum);
        __builtin_memcpy(terms, &term, 4);
      } else {
        int32_t term = -128 * sum;
        __builtin_memcpy(terms, &term, 4);
      }
    }
  }
}

// R rows by P panels over groups [first, last).
struct IntegerJob {
  const uint8_t *x, *terms, *weights;
  const float* scales;
  int64_t stride, term_row, panel_bytes;
  int64_t first, last;
  bool fresh, complete;  // starts from zero; ends with the scales
  float* c;
};

template <class Policy, bool kInt4, int R, int P>
__attribute__((noinline)) void integer_block(const IntegerJob& job) {
  typename Policy::Floats acc[R][P];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) acc[r][p] = job.fresh ? Policy::zero() : Policy::load(job.c + r * kStride + p * kPanel);
  for (int64_t group = job.first; group < job.last; ++group) {
    GroupView view[P];
    const uint8_t* codes[P];
    int32_t start[R];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      view[p] = group_view<kInt4>(job.weights + p * job.panel_bytes, group);
      codes[p] = view[p].codes;
    }
    const uint8_t* terms = job.terms + group * 4;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      start[r] = 0;
      if (!kInt4) __builtin_memcpy(&start[r], terms + r * job.term_row, 4);
    }
    typename Policy::Ints dot[R][P];
    Policy::template dots<R, P, kInt4>(codes, job.x + group * 2 * kGroup, job.stride, start, dot);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      auto d = Policy::from_f16(view[p].d);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[r][p] = Policy::fma(d, dot[r][p], acc[r][p]);
      if (kInt4) {
        auto m = Policy::from_f16(view[p].m);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) acc[r][p] = Policy::fma_term(m, terms + r * job.term_row, acc[r][p]);
      }
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

template <class Policy, bool kInt4>
void integer_product(const Product& product) {
  using Block = void (*)(const IntegerJob&);
  constexpr int kMost = Policy::kBlocks, kHeight = kMost < 4 ? kMost : 4;
  static constexpr Block kBlocks[4][3] = {{integer_block<Policy, kInt4, 1, 1>, integer_block<Policy, kInt4, 1, 2>,
                                           integer_block < Policy, kInt4, 1, kMost >= 4 ? 4 : 1 > },
                                          {integer_block<Policy, kInt4, 2, 1>, integer_block < Policy, kInt4, 2,
                                           kMost >= 4 ? 2 : 1 >, integer_block < Policy, kInt4, 2, kMost >= 8 ? 4 : 1 > },
                                          {integer_block < Policy, kInt4, kHeight < 3 ? 1 : 3, 1 >, integer_block < Policy,
                                           kInt4, kHeight < 3 ? 1 : 3, kMost >= 6 ? 2 : 1 >, nullptr},
                                          {integer_block < Policy, kInt4, kHeight < 4 ? 1 : 4, 1 >, integer_block < Policy,
                                           kInt4, kHeight < 4 ? 1 : 4, kMost >= 8 ? 2 : 1 >, nullptr}};
  const Activations& a = *product.x;
  constexpr int64_t kChunk = 16;  // groups of four panels that stay in the L1 cache
  int64_t groups = a.k / kGroup, chunk = product.rows <= kHeight ? groups : kChunk;
  int blocks = (product.rows + kHeight - 1) / kHeight;
  IntegerJob job;
  job.stride = a.stride;
  job.term_row = term_stride(a.k);
  job.panel_bytes = product.panel_bytes;
  for (job.first = 0; job.first < groups; job.first = job.last) {
    job.last = job.first + chunk < groups ? job.first + chunk : groups;
    job.fresh = job.first == 0;
    job.complete = job.last == groups;
    for (int block = 0, row = 0; block < blocks; ++block) {
      int height = (product.rows - row + blocks - block - 1) / (blocks - block), widest = kMost / height;
      job.x = a.data + (product.row0 + row) * a.stride;
      job.terms = a.terms + (product.row0 + row) * job.term_row;
      job.scales = a.scales + product.row0 + row;
      for (int panel = 0; panel < product.panels;) {
        int left = product.panels - panel, width = left >= 4 && widest >= 4 ? 4 : left >= 2 && widest >= 2 ? 2 : 1;
        job.weights = product.weights + panel * product.panel_bytes;
        job.c = product.c + row * kStride + panel * kPanel;
        kBlocks[height - 1][width / 2](job);
        panel += width;
      }
      if (job.complete) finish(product, row, height, 0, product.panels, product.c + row * kStride, kStride);
      row += height;
    }
  }
}
