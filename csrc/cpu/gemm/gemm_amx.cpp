// Products by AMX tiles (TDPBF16PS): within 32 of k two chains, even and odd, then their sum onto the output. One row and a
// thousand use the same instruction, except for a single row by quantized weights, where vectors compute the same.
//
// Tiles of x: rows in blocks of 16, a block's tiles along k one after the other, each [16 rows][32] bf16 = 1 KiB.
#include <immintrin.h>

#include "cpu/gemm/kernel.h"

namespace oarlock::cpu {
namespace {

#include "cpu/gemm/drawn.inl"
#include "cpu/gemm/held_rows.inl"
#include "cpu/gemm/row_blocks.inl"
#include "cpu/gemm/tile_blocks.inl"
#include "cpu/gemm/tile_expand.inl"

constexpr int64_t kMostTiles = 64;  // along k in one go: two panels of them, and 256 rows of x, fit the L2 cache

// x into tiles, tile by tile, or a single row, for quantized weights, into floats. Rows beyond the last one of a block stay as
// they are: a tile's rows do not mix.
template <bool kRaise>
void tile_rows(const Prepare& job, int64_t first, int64_t last) {
  if (kRaise && job.x.rows == 1) return widen_row(job.x.as<uint16_t>(), job.x.cols, reinterpret_cast<float*>(job.data));
  for (int64_t block = first; block < last; block += 16) {
    int rows = int(last - block < 16 ? last - block : 16);
    uint8_t* to = job.data + block * job.stride;
    for (int64_t k = 0; k < job.x.cols; k += kTileK, to += kTile) {
      const uint16_t* from = job.x.as<uint16_t>() + block * job.x.stride + k;
      for (int row = 0; row < rows; ++row, from += job.x.stride) {
        __m512i x = _mm512_loadu_si512(from);
        _mm512_store_si512(to + row * 64, kRaise ? raise(x) : x);
      }
    }
  }
}

enum class Format { bf16, int8, int4 };

// One tile of a panel in bf16.
template <Format kFormat>
OARLOCK_INLINE void expand_tile(const Product& job, __m256h shift, int panel, int64_t tile, uint8_t* to) {
  const uint8_t* from = job.weights + panel * job.panel_bytes;
  if (kFormat == Format::int8) expand_int8(group_view<false>(from, tile), shift, to);
  if (kFormat == Format::int4) expand_int4(group_view<true>(from, tile), shift, to);
}

// Tiles [first, first + count) of a panel.
template <Format kFormat>
void expand(const Product& job, int panel, int64_t first, int64_t count, uint8_t* to) {
  __m256h shift = _mm256_set1_ph(_Float16(job.shift));
  for (int64_t tile = first; tile < first + count; ++tile, to += kTile) expand_tile<kFormat>(job, shift, panel, tile, to);
}

// Up to 16 rows by up to four quantized panels, a step of k at a time: this step's tiles are expanded while the ones before
// are multiplied.
template <Format kFormat, int kPanels>
void expanding_block(const Product& job, int first_panel) {
  constexpr int kRowBytes = 256;
  constexpr int64_t kAhead = 4, kGroupBytes = (kFormat == Format::int4 ? kInt4Record : kInt8Record) / 2;
  const Following next = following(job, first_panel, kPanels);
  const __m256h shift = _mm256_set1_ph(_Float16(job.shift));
  const int64_t tiles = job.x->k / kTileK;
  const uint8_t* x = job.x->data + job.row0 * job.x->stride;
  _tile_zero(0);
  if (kPanels > 1) _tile_zero(1);
  if (kPanels > 2) _tile_zero(2);
  if (kPanels > 3) _tile_zero(3);
  for (int64_t tile = 0; tile <= tiles; ++tile) {
    if (tile < tiles) {
      uint8_t* to = job.scratch + tile % 2 * (kPanels * kTile);
      const uint8_t* from = job.weights + first_panel * job.panel_bytes + tile * kGroupBytes;
      const Drawn drawn = next.draw<kAhead, kGroupBytes, 0>(from, job.panel_bytes, tile, tiles);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        expand_tile<kFormat>(job, shift, first_panel + p, tile, to + p * kTile);
        draw_group<kFormat == Format::int4>(drawn.from + p * drawn.panel);
      }
    }
    if (tile == 0) continue;
    const uint8_t* w = job.scratch + (tile - 1) % 2 * (kPanels * kTile);
    _tile_loadd(4, x + (tile - 1) * kTile, 64);
    _tile_loadd(6, w, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kPanels > 1) {
      _tile_loadd(7, w + kTile, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kPanels > 2) {
      _tile_loadd(6, w + 2 * kTile, 64);
      _tile_dpbf16ps(2, 4, 6);
    }
    if (kPanels > 3) {
      _tile_loadd(7, w + 3 * kTile, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, job.c, kRowBytes);
  if (kPanels > 1) _tile_stored(1, job.c + 16, kRowBytes);
  if (kPanels > 2) _tile_stored(2, job.c + 32, kRowBytes);
  if (kPanels > 3) _tile_stored(3, job.c + 48, kRowBytes);
}

// Up to 16 rows: the time to read the weights. Four panels at once, since several streams read faster than one.
template <Format kFormat>
void few_rows(const Product& job) {
  for (int panel = 0; panel < job.panels; panel += kMaxPanels) {
    int width = job.panels - panel < kMaxPanels ? job.panels - panel : kMaxPanels;
    if (kFormat == Format::bf16) {
      Strip s;
      s.x = job.x->data + job.row0 * job.x->stride;
      s.block = 0;
      s.w = job.weights + panel * job.panel_bytes;
      s.panel = job.panel_bytes;
      s.tiles = job.x->k / kTileK;
      s.c = job.c;
      if (width == 4) one_block<4>(s);
      if (width == 3) one_block<3>(s);
      if (width == 2) one_block<2>(s);
      if (width == 1) one_block<1>(s);
    } else if (job.x->rows == 1) {
      one_row<kFormat == Format::int4>(job, panel, width);
    } else {
      if (width == 4) expanding_block<kFormat, 4>(job, panel);
      if (width == 3) expanding_block<kFormat, 3>(job, panel);
      if (width == 2) expanding_block<kFormat, 2>(job, panel);
      if (width == 1) expanding_block<kFormat, 1>(job, panel);
    }
    finish_sums(job, 0, job.rows, panel, width, job.c, 64);
  }
}

// More rows: pairs of panels, whose weights stay close while all rows pass. Sums that wait for the next chunk of k rest in c,
// [pair][row][32]; finished ones leave at once.
template <Format kFormat>
void many_rows(const Product& job) {
  int64_t tiles = job.x->k / kTileK, most = kMostTiles;
  if (kFormat != Format::bf16 && job.rows <= 64) most = job.rows / 4;  // expanded tiles then stay in the L1 cache
  int64_t chunks = (tiles + most - 1) / most, chunk = (tiles + chunks - 1) / chunks;
  int turn = 0;
  Finishing finishing;
  for (int64_t first = 0; first < tiles; first += chunk) {
    int64_t count = tiles - first < chunk ? tiles - first : chunk;
    bool last = first + count == tiles;
    for (int panel = 0; panel < job.panels; panel += 2) {
      bool both = job.panels - panel > 1;
      Strip s;
      s.block = 16 * job.x->stride;
      s.tiles = count;
      s.fresh = first == 0;
      s.panel = kFormat == Format::bf16 ? job.panel_bytes : kMostTiles * kTile;
      s.w = kFormat == Format::bf16 ? job.weights + panel * job.panel_bytes + first * kTile : job.scratch;
      if (kFormat != Format::bf16)
        for (int i = 0; i < 1 + both; ++i) expand<kFormat>(job, panel + i, first, count, job.scratch + i * s.panel);
      // What comes after this pair: the next one, else the first with the next chunk of k, else the next piece of work.
      const uint8_t* next = panel + 2 < job.panels ? job.weights + (panel + 2) * job.panel_bytes
                            : last                 ? job.ahead
                                                   : job.weights;
      int64_t start = panel + 2 < job.panels ? first : last ? 0 : first + count, per_tile = job.panel_bytes / tiles;
      Ahead ahead;
      if (next) ahead = Ahead(next + start * per_tile, job.panel_bytes, count * per_tile, (job.rows + 31) / 32 * count);
      for (int row = 0; row < job.rows; row += 32) {
        s.x = job.x->data + (job.row0 + row) * job.x->stride + first * kTile;
        s.c = chunks == 1 ? job.c + (turn++ & 1) * 1024 : job.c + (panel / 2 * kMaxRows + row) * 32;
        int rows = job.rows - row < 32 ? job.rows - row : 32;
        const bool straight = last && rows == 32 && leaves_straight(job, panel);
        s.to = straight ? static_cast<float*>(job.out) + row * job.out_stride + panel * kPanel : s.c;
        s.to_bytes = straight ? job.out_stride * 4 : 128;
        if (rows > 16) {
          both ? square<2, 2>(s, ahead, finishing) : square<2, 1>(s, ahead, finishing);
        } else {
          both ? square<1, 2>(s, ahead, finishing) : square<1, 1>(s, ahead, finishing);
        }
        finishing.end();
        if (last && !straight) finishing.begin(job, row, rows, panel, 1 + both, s.c, count, false);
      }
    }
  }
  finishing.end();
}

template <Format kFormat>
void product(const Product& job) {
  if (kFormat != Format::bf16 && job.x->rows == 1) return few_rows<kFormat>(job);  // without tiles
  if (kFormat == Format::bf16 && job.x->in_place) {
    configure_tiles(16);
    held_rows(job);
    return _tile_release();
  }
  configure_tiles(job.rows < 16 ? job.rows : 16);
  job.rows <= 16 ? few_rows<kFormat>(job) : many_rows<kFormat>(job);
  _tile_release();
}

}  // namespace

const Kernel kAmxBf16 = {"amx bf16", Layout::bf16, Input::tiles, 1 << 20, kDeepPanels, tile_rows<false>, product<Format::bf16>};
const Kernel kAmxInt8 = {"amx int8 groups", Layout::int8_pairs, Input::raised,        1 << 20,
                         kDeepPanels,       tile_rows<true>,    product<Format::int8>};
const Kernel kAmxInt4 = {"amx int4 groups", Layout::int4_pairs, Input::raised,        1 << 20,
                         kDeepPanels,       tile_rows<true>,    product<Format::int4>};

}  // namespace oarlock::cpu
