// Products by AMX tiles (TDPBF16PS). One row and a thousand use the same instruction, since no other sums in its order:
// within 32 of k two chains, even and odd, then their sum onto the output.
//
// Tiles of x: rows in blocks of 16, a block's tiles along k one after the other, each [16 rows][32] bf16 = 1 KiB.
#include <immintrin.h>

#include "cpu/gemm/kernel.h"

namespace oarlock::cpu {
namespace {

#include "cpu/gemm/epilogue.inl"
#include "cpu/gemm/tile_expand.inl"

constexpr int64_t kTile = 1024;  // bytes
constexpr int kTileK = 32;       // elements of k in a tile

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

// What a micro-kernel multiplies: `tiles` steps of 32 along k.
struct Strip {
  const uint8_t* x;  // first tile of the block of rows
  int64_t block;     // bytes from a block of 16 rows to the next
  const uint8_t* w;  // first tile of the first panel
  int64_t panel;     // bytes from a panel to the next
  int64_t tiles;
  bool fresh;  // start from zero, not from c
  float* c;
};

constexpr int kRowBytes = kStride * 4;  // of c

template <int kPanels>
void one_block(const Strip& s) {
  const uint8_t *x = s.x, *w = s.w;
  if (s.fresh) {
    _tile_zero(0);
    if (kPanels > 1) _tile_zero(1);
    if (kPanels > 2) _tile_zero(2);
    if (kPanels > 3) _tile_zero(3);
  } else {
    _tile_loadd(0, s.c, kRowBytes);
    if (kPanels > 1) _tile_loadd(1, s.c + 16, kRowBytes);
    if (kPanels > 2) _tile_loadd(2, s.c + 32, kRowBytes);
    if (kPanels > 3) _tile_loadd(3, s.c + 48, kRowBytes);
  }
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

template <int kPanels>
void two_blocks(const Strip& s) {
  const uint8_t *x = s.x, *w = s.w;
  float* lower = s.c + 16 * kStride;
  if (s.fresh) {
    _tile_zero(0);
    _tile_zero(2);
    if (kPanels > 1) _tile_zero(1);
    if (kPanels > 1) _tile_zero(3);
  } else {
    _tile_loadd(0, s.c, kRowBytes);
    _tile_loadd(2, lower, kRowBytes);
    if (kPanels > 1) _tile_loadd(1, s.c + 16, kRowBytes);
    if (kPanels > 1) _tile_loadd(3, lower + 16, kRowBytes);
  }
  for (int64_t tile = 0; tile < s.tiles; ++tile, x += kTile, w += kTile) {
    _tile_stream_loadd(4, x, 64);
    _tile_loadd(6, w, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_stream_loadd(5, x + s.block, 64);
    _tile_dpbf16ps(2, 5, 6);
    if (kPanels > 1) {
      _tile_loadd(7, w + s.panel, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, s.c, kRowBytes);
  _tile_stored(2, lower, kRowBytes);
  if (kPanels > 1) _tile_stored(1, s.c + 16, kRowBytes);
  if (kPanels > 1) _tile_stored(3, lower + 16, kRowBytes);
}

// All row blocks by the panels over one chunk of k. `rows` up to 16 use one block; more come in blocks of 32, then 16.
void tile_chunk(Strip s, int rows, int panels) {
  if (rows <= 16) {
    for (int panel = 0; panel < panels;) {
      Strip part = s;
      part.w += panel * s.panel;
      part.c += panel * kPanel;
      int width = panels - panel;
      if (width >= 4) one_block<4>(part);
      if (width == 3) one_block<3>(part);
      if (width == 2) one_block<2>(part);
      if (width == 1) one_block<1>(part);
      panel += width;
    }
    return;
  }
  for (int panel = 0; panel < panels; panel += 2) {
    for (int row = 0; row < rows; row += 32) {
      Strip part = s;
      part.x += row / 16 * s.block;
      part.w += panel * s.panel;
      part.c += row * kStride + panel * kPanel;
      bool both = panels - panel >= 2;
      if (rows - row > 16) {
        both ? two_blocks<2>(part) : two_blocks<1>(part);
      } else {
        both ? one_block<2>(part) : one_block<1>(part);
      }
    }
  }
}

// x into tiles. Rows beyond the last one of a block stay as they are: a tile's rows do not mix.
void tile_rows(const Prepare& job, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const uint16_t* from = job.x.as<uint16_t>() + row * job.x.stride;
    uint8_t* to = job.data + row / 16 * (16 * job.stride) + row % 16 * 64;
    for (int64_t k = 0; k < job.x.cols; k += kTileK, to += kTile) _mm512_storeu_si512(to, _mm512_loadu_si512(from + k));
  }
}

Strip first_strip(const Product& job) {
  Strip s = {};
  s.block = 16 * job.x->stride;
  s.x = job.x->data + job.row0 / 16 * s.block;
  s.c = job.c;
  return s;
}

void bf16_product(const Product& job) {
  configure_tiles(job.rows < 16 ? job.rows : 16);
  int64_t tiles = job.x->k / kTileK, chunk = job.rows <= 32 ? tiles : 64;
  Strip s = first_strip(job);
  s.panel = job.panel_bytes;
  for (int64_t first = 0; first < tiles; first += chunk) {
    Strip part = s;
    part.x += first * kTile;
    part.w = job.weights + first * kTile;
    part.tiles = tiles - first < chunk ? tiles - first : chunk;
    part.fresh = first == 0;
    tile_chunk(part, job.rows, job.panels);
  }
  _tile_release();
}

// Weights expanded to bf16 tiles in scratch, a few steps of k at a time for few rows, more for many.
template <bool kInt4>
void expanded_product(const Product& job) {
  configure_tiles(job.rows < 16 ? job.rows : 16);
  int64_t tiles = job.x->k / kTileK, chunk = job.rows <= 16 ? 4 : 16;
  Strip s = first_strip(job);
  s.panel = chunk * kTile;
  for (int64_t first = 0; first < tiles; first += chunk) {
    Strip part = s;
    part.x += first * kTile;
    part.w = job.scratch;
    part.tiles = tiles - first < chunk ? tiles - first : chunk;
    part.fresh = first == 0;
    for (int64_t tile = 0; tile < part.tiles; ++tile) {
      for (int panel = 0; panel < job.panels; ++panel) {
        GroupView view = group_view<kInt4>(job.weights + panel * job.panel_bytes, first + tile);
        uint8_t* to = job.scratch + panel * s.panel + tile * kTile;
        kInt4 ? expand_int4(view, to) : expand_int8(view, to);
      }
    }
    tile_chunk(part, job.rows, job.panels);
  }
  _tile_release();
}

}  // namespace

const Kernel kAmxInt8 = {"amx int8", Layout::int8_pairs, Input::tiles, 1 << 20, tile_rows, expanded_product<false>, finish};
const Kernel kAmxInt4 = {"amx int4", Layout::int4_pairs, Input::tiles, 1 << 20, tile_rows, expanded_product<true>, finish};
const Kernel kAmxBf16 = {"amx bf16", Layout::bf16, Input::tiles, 1 << 20, tile_rows, bf16_product, finish};

}  // namespace oarlock::cpu
