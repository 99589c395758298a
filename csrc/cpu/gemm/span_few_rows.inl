// Two to eight rows by spans on tiles: the time to read the weights. Included by gemm_amx_int8.cpp.
#pragma once

#include "cpu/gemm/span_digits.inl"
#include "cpu/gemm/span_sums.inl"
#include "cpu/gemm/tiles.inl"

constexpr int64_t kOpened = 16 << 10;  // bytes of a thread's scratch memory before opened weights

int block_height(int64_t rows) { return int(rows < kBlockRows ? rows : kBlockRows); }

template <int64_t kBytes>
OARLOCK_INLINE void draw_tile(const uint8_t* tile) {
#pragma GCC unroll 16
  for (int64_t line = 0; line < kBytes / 64; ++line) _mm_prefetch(tile + line * 64, _MM_HINT_T0);
}

template <int kPanels>
OARLOCK_INLINE void zero_sums() {
  _tile_zero(0);
  if (kPanels > 1) _tile_zero(1);
  if (kPanels > 2) _tile_zero(2);
  if (kPanels > 3) _tile_zero(3);
}

template <int kPanels>
OARLOCK_INLINE void store_sums(int32_t* c) {
  constexpr int kRowBytes = kStride * 4;
  _tile_stored(0, c, kRowBytes);
  if (kPanels > 1) _tile_stored(1, c + 16, kRowBytes);
  if (kPanels > 2) _tile_stored(2, c + 32, kRowBytes);
  if (kPanels > 3) _tile_stored(3, c + 48, kRowBytes);
}

// A tile of x by one of each panel, `panel` bytes apart; kDraw: others are drawn from memory.
template <int kPanels, bool kDraw>
OARLOCK_INLINE void multiply_tiles(const uint8_t* x, const uint8_t* w, int64_t panel, Drawn drawn) {
  _tile_loadd(4, x, 64);
  if (kDraw) draw_tile<kInt8Tile>(drawn.from);
  _tile_loadd(6, w, 64);
  _tile_dpbssd(0, 4, 6);
  if (kPanels > 1) {
    if (kDraw) draw_tile<kInt8Tile>(drawn.from + drawn.panel);
    _tile_loadd(7, w + panel, 64);
    _tile_dpbssd(1, 4, 7);
  }
  if (kPanels > 2) {
    if (kDraw) draw_tile<kInt8Tile>(drawn.from + 2 * drawn.panel);
    _tile_loadd(6, w + 2 * panel, 64);
    _tile_dpbssd(2, 4, 6);
  }
  if (kPanels > 3) {
    if (kDraw) draw_tile<kInt8Tile>(drawn.from + 3 * drawn.panel);
    _tile_loadd(7, w + 3 * panel, 64);
    _tile_dpbssd(3, 4, 7);
  }
}

// A span's tiles of up to four panels.
struct FewTiles {
  const uint8_t *x, *w;
  int64_t panel_bytes;
  int64_t first, count, all;  // the span's first tile and their number, and that of a panel's
  Following next;
  int32_t* c;  // rows of 64 sums
  uint8_t* opened;
};

// Up to 8 rows by up to four panels.
template <int kPanels>
void one_block(const FewTiles& job) {
  constexpr int64_t kAhead = 4;
  const uint8_t *x = job.x, *w = job.w;
  zero_sums<kPanels>();
  for (int64_t tile = 0; tile < job.count; ++tile, x += kTile, w += kTile) {
    multiply_tiles<kPanels, true>(x, w, job.panel_bytes,
                                  job.next.draw<kAhead, kTile, kSpanScales>(w, job.panel_bytes, job.first + tile, job.all));
  }
  store_sums<kPanels>(job.c);
}

// The same by int4 panels, whose tiles are opened while the ones before are multiplied.
template <int kPanels>
void opening_block(const FewTiles& job) {
  constexpr int64_t kAhead = 4;
  const uint8_t *x = job.x, *w = job.w;
  zero_sums<kPanels>();
  for (int64_t tile = 0; tile <= job.count; ++tile, w += kInt4Tile) {
    uint8_t *now = job.opened + tile % 2 * (kPanels * kTile), *before = job.opened + (tile + 1) % 2 * (kPanels * kTile);
    if (tile < job.count) {
      const Drawn drawn = job.next.draw<kAhead, kInt4Tile, kSpanScales>(w, job.panel_bytes, job.first + tile, job.all);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        draw_tile<kInt4Tile>(drawn.from + p * drawn.panel);
        open_tile(w + p * job.panel_bytes, now + p * kTile);
      }
    }
    if (tile > 0) multiply_tiles<kPanels, false>(x + (tile - 1) * kTile, before, kTile, {});
  }
  store_sums<kPanels>(job.c);
}

template <bool kInt4, int kPanels>
OARLOCK_INLINE void few_rows_block(const FewTiles& job) {
  kInt4 ? opening_block<kPanels>(job) : one_block<kPanels>(job);
}

// Up to 8 rows: the time to read the weights. A span's sums are scaled while the next one's are made.
template <bool kInt4>
void few_rows(const Product& job) {
  constexpr int64_t kBytes = kInt4 ? kInt4Tile : kInt8Tile;
  const int height = block_height(job.x->rows);
  const int64_t tiles = whole_tiles(job.x->k) / 64, length = span_tiles(job.x->k), spans = (tiles + length - 1) / length;
  const uint8_t* x = job.x->data + job.row0 * job.x->stride;
  int32_t* sums = reinterpret_cast<int32_t*>(job.scratch);
  for (int panel = 0; panel < job.panels; panel += kMaxPanels) {
    const int width = job.panels - panel < kMaxPanels ? job.panels - panel : kMaxPanels;
    auto add = [&](int64_t span) {
      for (int p = 0; p < width; p += 2) {
        const int panels = width - p > 1 ? 2 : 1;
        Adding adding;
        adding.begin(job,
                     sums_of(job, sums + (span & 1) * 16 * kStride + p * kPanel, kStride, height, panel + p, panels, span,
                             span_bytes(length, kBytes)),
                     0, job.rows, panel + p, panels, job.c + p * kBlockRows * kPanel, span == 0, span + 1 == spans, 1);
        adding.end();
      }
    };
    for (int64_t span = 0; span < spans; ++span) {
      FewTiles part;
      part.first = span * length;
      part.count = tiles - part.first < length ? tiles - part.first : length;
      part.all = tiles;
      part.x = x + part.first * kTile;
      part.w = job.weights + panel * job.panel_bytes + span_place(part.first, length, kBytes);
      part.panel_bytes = job.panel_bytes;
      part.next = following(job, panel, width);
      part.c = sums + (span & 1) * 16 * kStride;
      part.opened = job.scratch + kOpened;
      if (width == 4) few_rows_block<kInt4, 4>(part);
      if (width == 3) few_rows_block<kInt4, 3>(part);
      if (width == 2) few_rows_block<kInt4, 2>(part);
      if (width == 1) few_rows_block<kInt4, 1>(part);
      if (span > 0) add(span - 1);
    }
    add(spans - 1);
  }
}
