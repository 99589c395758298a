// Blocks of sums in tiles, and writing out finished ones beside the next block's products.
// Included by gemm_amx.cpp.
#pragma once

#include "cpu/gemm/tiles.inl"

constexpr int kTileK = 32;  // elements of k in a tile

// A block whose sums are complete, written out a few rows with every step of the next block, beside its tile products.
class Finishing {
 public:
  // side_by_side: the pair of panels to the right follows for the same rows, so that gated outputs, 16 columns a pair, can be
  // written as whole cache lines.
  void begin(const Product& job, int row, int rows, int panel, int panels, const float* c, int64_t steps, bool side_by_side) {
    job_ = &job;
    row_ = row;
    end_ = row + rows;
    panel_ = panel;
    panels_ = panels;
    c_ = c;
    rows_a_step_ = int((rows + steps - 1) / steps);
    how_ = General;
    if (panels != 2 || job.out_dtype != DType::bf16 || job.bias || job.unit != 1) return;
    if (!job.gated && (panel + 2) * kPanel <= job.cols) how_ = Round;
    if (!job.gated || !side_by_side) return;
    const int right = panel / 4 * 4 + 2;  // the pair that completes a cache line
    if (right + 2 <= job.panels && (right / 2 + 1) * kPanel <= job.cols) how_ = panel < right ? Left : Right;
  }
  void step() {
    if (row_ < end_) advance(rows_a_step_);
  }
  void end() { advance(end_ - row_); }

 private:
  enum How { General, Round, Left, Right };

  __attribute__((noinline)) void advance(int rows) {
    if (rows > end_ - row_) rows = end_ - row_;
    if (rows <= 0) return;
    if (how_ == Round) {
      uint16_t* out = out_row(panel_ * kPanel);
      for (int row = 0; row < rows; ++row, out += job_->out_stride) {
        __m512 low = _mm512_load_ps(c_ + row * 32), high = _mm512_load_ps(c_ + row * 32 + 16);
        _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(high, low));
      }
    } else if (how_ == Left) {
      for (int row = 0; row < rows; ++row) _mm512_store_ps(left_ + (row_ + row) % 32 * kPanel, gated_row(row));
    } else if (how_ == Right) {
      uint16_t* out = out_row((panel_ - 2) / 2 * kPanel);
      for (int row = 0; row < rows; ++row, out += job_->out_stride) {
        __m512 left = _mm512_load_ps(left_ + (row_ + row) % 32 * kPanel);
        _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(gated_row(row), left));
      }
    } else {
      finish_sums(*job_, row_, rows, panel_, panels_, c_, 32);
    }
    row_ += rows;
    c_ += rows * 32;
  }
  uint16_t* out_row(int col) const { return static_cast<uint16_t*>(job_->out) + row_ * job_->out_stride + col; }
  __m512 gated_row(int row) const {
    return rounded_gated_value(_mm512_load_ps(c_ + row * 32), _mm512_load_ps(c_ + row * 32 + 16));
  }

  const Product* job_ = nullptr;
  const float* c_ = nullptr;
  int row_ = 0, end_ = 0, panel_ = 0, panels_ = 0, rows_a_step_ = 0;
  How how_ = General;
  alignas(64) float left_[32 * kPanel];  // gated outputs that wait for those to their right
};

// Whether sums are the result: tiles are then stored where it belongs.
bool leaves_straight(const Product& job, int panel) {
  return job.out_dtype == DType::f32 && !job.gated && !job.bias && job.unit == 1 && panel + 2 <= job.panels &&
         (panel + 2) * kPanel <= job.cols;
}

// What a micro-kernel multiplies: `tiles` steps of 32 along k, from zero (fresh) or onto c.
struct Strip {
  const uint8_t* x;  // first tile of the block of rows
  int64_t block;     // bytes from a block of 16 rows to the next
  const uint8_t* w;  // first tile of the first panel
  int64_t panel;     // bytes from a panel to the next
  int64_t tiles;
  bool fresh;
  float* c;
  float* to;         // where the sums go: c, or straight to out
  int64_t to_bytes;  // from a row there to the next
};

// Up to 16 rows by up to four panels; c has rows of 64 floats.
template <int kPanels>
void one_block(const Strip& s) {
  constexpr int kRowBytes = 256;
  const uint8_t *x = s.x, *w = s.w;
  _tile_zero(0);
  if (kPanels > 1) _tile_zero(1);
  if (kPanels > 2) _tile_zero(2);
  if (kPanels > 3) _tile_zero(3);
  for (int64_t tile = 0; tile < s.tiles; ++tile, x += kTile, w += kTile) {
    _tile_loadd(4, x, 64);
    _tile_loadd(6, w, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kPanels > 1) {
      _tile_loadd(7, w + s.panel, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kPanels > 2) {
      _tile_loadd(6, w + 2 * s.panel, 64);
      _tile_dpbf16ps(2, 4, 6);
    }
    if (kPanels > 3) {
      _tile_loadd(7, w + 3 * s.panel, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, s.c, kRowBytes);
  if (kPanels > 1) _tile_stored(1, s.c + 16, kRowBytes);
  if (kPanels > 2) _tile_stored(2, s.c + 32, kRowBytes);
  if (kPanels > 3) _tile_stored(3, s.c + 48, kRowBytes);
}

// The sums of 32 rows (kBlocks 2) or 16 by one or two panels: from zero or from c, whose rows have 32 floats, and to where they
// go.
template <int kBlocks, int kPanels>
OARLOCK_INLINE void load_sums(const Strip& s) {
  constexpr int kRowBytes = 128;
  const float* lower = s.c + 16 * 32;
  if (s.fresh) {
    _tile_zero(0);
    if (kBlocks > 1) _tile_zero(2);
    if (kPanels > 1) _tile_zero(1);
    if (kBlocks > 1 && kPanels > 1) _tile_zero(3);
  } else {
    _tile_loadd(0, s.c, kRowBytes);
    if (kBlocks > 1) _tile_loadd(2, lower, kRowBytes);
    if (kPanels > 1) _tile_loadd(1, s.c + 16, kRowBytes);
    if (kBlocks > 1 && kPanels > 1) _tile_loadd(3, lower + 16, kRowBytes);
  }
}

template <int kBlocks, int kPanels>
OARLOCK_INLINE void store_sums(const Strip& s) {
  float* lower = s.to + 4 * s.to_bytes;
  _tile_stored(0, s.to, s.to_bytes);
  if (kBlocks > 1) _tile_stored(2, lower, s.to_bytes);
  if (kPanels > 1) _tile_stored(1, s.to + 16, s.to_bytes);
  if (kBlocks > 1 && kPanels > 1) _tile_stored(3, lower + 16, s.to_bytes);
}

// 32 rows (kBlocks 2) or 16 by one or two panels. x is read past the L1 cache, where the panels then stay for the next rows.
template <int kBlocks, int kPanels>
void square(const Strip& s, Ahead& ahead, Finishing& finishing) {
  const uint8_t *x = s.x, *w = s.w;
  Ahead near = ahead;
  load_sums<kBlocks, kPanels>(s);
  for (int64_t tile = 0; tile < s.tiles; ++tile, x += kTile, w += kTile) {
    near.step();
    finishing.step();
    _tile_stream_loadd(4, x, 64);
    _tile_loadd(6, w, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kBlocks > 1) {
      _tile_stream_loadd(5, x + s.block, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (kPanels > 1) {
      _tile_loadd(7, w + s.panel, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kBlocks > 1 && kPanels > 1) _tile_dpbf16ps(3, 5, 7);
  }
  ahead = near;
  store_sums<kBlocks, kPanels>(s);
}
