// From a span's sums in tiles to results: scaled, added to those of the spans before, written out after the last. Included by
// gemm_amx_int8.cpp.
#pragma once

#include "cpu/gemm/tiles.inl"

constexpr int kBlockRows = 8;      // rows of x in a tile
constexpr int kPair = 2 * kPanel;  // columns of two panels

// A span's sums of some rows by one or two panels: in c those of the high digits of `height` rows, then of the low ones, and so
// on by as many rows.
struct SpanSums {
  const int32_t* c;
  int64_t stride;
  int height;
  __m512 scales[2];
};

// One row's sums, scaled and added to acc, in v.
template <bool kFirst>
OARLOCK_INLINE void add_span(const SpanSums& s, int row, const float* acc, __m512 v[2]) {
  const int32_t* high = s.c + (row / kBlockRows * 2 * kBlockRows + row % kBlockRows) * s.stride;
  const int32_t* low = high + s.height * s.stride;
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p, high += kPanel, low += kPanel) {
    __m512i dot = _mm512_add_epi32(_mm512_slli_epi32(_mm512_loadu_si512(high), 7), _mm512_loadu_si512(low));
    __m512 before = kFirst ? _mm512_setzero_ps() : _mm512_loadu_ps(acc + p * kPanel);
    v[p] = _mm512_fmadd_ps(s.scales[p], _mm512_cvtepi32_ps(dot), before);
  }
}

// A finished row of one or two panels. Rows and panels are counted within the piece of work.
OARLOCK_INLINE void write_row(const Product& job, bool plain, int row, int panel, int panels, __m512 v[2]) {
  const __m512 scale = _mm512_set1_ps(job.x->scales[job.row0 + row]);
  v[0] = _mm512_mul_ps(v[0], scale);
  v[1] = _mm512_mul_ps(v[1], scale);
  if (plain && job.out_dtype == DType::f32) {
    float* out = static_cast<float*>(job.out) + row * job.out_stride + panel * kPanel;
    _mm512_storeu_ps(out, v[0]);
    _mm512_storeu_ps(out + kPanel, v[1]);
  } else if (plain) {
    uint16_t* out = static_cast<uint16_t*>(job.out) + row * job.out_stride + panel * kPanel;
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(v[1], v[0]));
  } else if (job.gated) {
    store(job, gated_result(job, v[0], v[1]), row, panel / 2 * kPanel);
  } else {
    alignas(64) float floats[kPair];
    _mm512_store_ps(floats, v[0]);
    _mm512_store_ps(floats + kPanel, v[1]);
    finish_sums(job, row, 1, panel, panels, floats, kPair);
  }
}

// Whether results are no more than rounded, a cache line a row.
bool is_plain(const Product& job, int panel, int panels) {
  return panels == 2 && !job.gated && !job.bias && (panel + 2) * kPanel <= job.cols;
}

// record: bytes from a span to the next.
SpanSums sums_of(const Product& job, const int32_t* c, int64_t stride, int height, int panel, int panels, int64_t span,
                 int64_t record) {
  const uint8_t* scales = job.weights + panel * job.panel_bytes + span * record;
  return {
      c, stride, height, {_mm512_load_ps(scales), panels > 1 ? _mm512_load_ps(scales + job.panel_bytes) : _mm512_setzero_ps()}};
}

// A block of rows whose sums of one span are complete, scaled and added up, after the last span written out, a few rows with
// every step of the next block, beside its tile products.
class Adding {
 public:
  void begin(const Product& job, const SpanSums& sums, int row, int rows, int panel, int panels, float* acc, bool first,
             bool last, int64_t steps) {
    job_ = &job;
    sums_ = sums;
    row_ = row;
    panel_ = panel;
    panels_ = panels;
    acc_ = acc;
    first_ = first;
    last_ = last;
    plain_ = is_plain(job, panel, panels);
    done_ = 0;
    rows_ = rows;
    rows_a_step_ = int((rows + steps - 1) / steps);
  }
  void step() {
    if (done_ < rows_) advance(rows_a_step_);
  }
  void end() {
    if (done_ < rows_) advance(rows_);
  }

 private:
  __attribute__((noinline)) void advance(int rows) {
    const int end = done_ + rows < rows_ ? done_ + rows : rows_;
    if (last_) {
      first_ ? write<true>(end) : write<false>(end);
    } else {
      first_ ? add<true>(end) : add<false>(end);
    }
    done_ = end;
  }

  template <bool kFirst>
  __attribute__((always_inline)) void add(int end) {
    const SpanSums sums = sums_;
    float* acc = acc_ + done_ * kPair;
    for (int row = done_; row < end; ++row, acc += kPair) {
      __m512 v[2];
      add_span<kFirst>(sums, row, acc, v);
      _mm512_storeu_ps(acc, v[0]);
      _mm512_storeu_ps(acc + kPanel, v[1]);
    }
  }

  template <bool kFirst>
  __attribute__((always_inline)) void write(int end) {
    const SpanSums sums = sums_;
    const float* acc = acc_ + done_ * kPair;
    for (int row = done_; row < end; ++row, acc += kPair) {
      __m512 v[2];
      add_span<kFirst>(sums, row, acc, v);
      write_row(*job_, plain_, row_ + row, panel_, panels_, v);
    }
  }

  const Product* job_ = nullptr;
  SpanSums sums_ = {};
  float* acc_ = nullptr;
  int row_ = 0, rows_ = 0, done_ = 0, panel_ = 0, panels_ = 0, rows_a_step_ = 0;
  bool first_ = false, last_ = false, plain_ = false;
};
