// Many rows by bf16 panels. 32 rows of x stay in the L1 cache while a piece's panels pass by from the L2 cache, which keeps
// them for all of its rows. Panels are loaded past L1, so that they do not drive x out of it. Included by gemm_amx.cpp.
#pragma once

#include "cpu/gemm/tile_blocks.inl"

constexpr int64_t kHeldTiles = 18;  // of 32 along k: 32 rows of x are then 36 KiB, of 48 that the L1 cache has
constexpr int kHeldWays = 9;        // of the L1 cache's 12 that x may take

// Whether 32 rows of x, `tiles` cache lines of each, spread over the L1 cache's 64 sets when they stay where they are.
bool spread(const Activations& x, int64_t tiles) {
  if (reinterpret_cast<uintptr_t>(x.data) % 64 != 0 || x.stride % 64 != 0) return false;
  const int64_t line = x.stride / 64, shared = line & -line;  // rows begin at multiples of it, modulo 64
  const int64_t unit = shared < 1 || shared > 64 ? 64 : shared;
  return (unit < 2 ? 1 : unit / 2) * ((tiles + unit - 1) / unit) <= kHeldWays;
}

// `count` tiles of up to 32 rows, row by row.
void copy_rows(const Activations& x, int64_t row, int rows, int64_t first, int64_t count, uint8_t* to) {
  for (int r = 0; r < rows; ++r, to += count * 64) {
    const uint8_t* from = x.data + (row + r) * x.stride + first * 64;
    for (int64_t tile = 0; tile < count; ++tile) _mm512_store_si512(to + tile * 64, _mm512_loadu_si512(from + tile * 64));
  }
}

// 32 rows (kBlocks 2) or 16, `block` bytes from one row to the next, by one or two panels.
template <int kBlocks, int kPanels>
void held_square(const Strip& s, Ahead& ahead, Finishing& finishing) {
  const uint8_t *x = s.x, *lower = s.x + 16 * s.block, *w = s.w;
  Ahead near = ahead;
  load_sums<kBlocks, kPanels>(s);
  for (int64_t tile = 0; tile < s.tiles; ++tile, x += 64, lower += 64, w += kTile) {
    near.step();
    finishing.step();
    _tile_stream_loadd(6, w, 64);
    _tile_loadd(4, x, s.block);
    _tile_dpbf16ps(0, 4, 6);
    if (kBlocks > 1) {
      _tile_loadd(5, lower, s.block);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (kPanels > 1) {
      _tile_stream_loadd(7, w + s.panel, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kBlocks > 1 && kPanels > 1) _tile_dpbf16ps(3, 5, 7);
  }
  ahead = near;
  store_sums<kBlocks, kPanels>(s);
}

void held_rows(const Product& job) {
  const int64_t tiles = job.x->k / kTileK, chunks = (tiles + kHeldTiles - 1) / kHeldTiles,
                chunk = (tiles + chunks - 1) / chunks;
  const bool in_place = spread(*job.x, chunk);
  const int blocks = (job.rows + 31) / 32, pairs = (job.panels + 1) / 2;
  Ahead ahead;
  if (job.ahead) {
    const int64_t half = job.panels * job.panel_bytes / 2;
    ahead = Ahead(job.ahead, half, half, blocks * pairs * tiles);
  }
  Finishing finishing;
  int turn = 0;
  for (int row = 0; row < job.rows; row += 32) {
    const int rows = job.rows - row < 32 ? job.rows - row : 32;
    for (int64_t first = 0; first < tiles; first += chunk) {
      Strip s;
      s.tiles = tiles - first < chunk ? tiles - first : chunk;
      s.fresh = first == 0;
      s.panel = job.panel_bytes;
      s.x = job.x->data + (job.row0 + row) * job.x->stride + first * 64;
      s.block = job.x->stride;
      if (!in_place || rows < 32) {
        copy_rows(*job.x, job.row0 + row, rows, first, s.tiles, job.scratch);
        s.x = job.scratch;
        s.block = s.tiles * 64;
      }
      const bool last = first + s.tiles == tiles;
      for (int panel = 0; panel < job.panels; panel += 2) {
        const bool both = job.panels - panel > 1;
        s.w = job.weights + panel * job.panel_bytes + first * kTile;
        s.c = job.c + (chunks == 1 ? turn++ & 1 : panel / 2) * 1024;
        const bool straight = last && rows == 32 && leaves_straight(job, panel);
        s.to = straight ? static_cast<float*>(job.out) + row * job.out_stride + panel * kPanel : s.c;
        s.to_bytes = straight ? job.out_stride * 4 : 128;
        if (rows > 16) {
          both ? held_square<2, 2>(s, ahead, finishing) : held_square<2, 1>(s, ahead, finishing);
        } else {
          both ? held_square<1, 2>(s, ahead, finishing) : held_square<1, 1>(s, ahead, finishing);
        }
        finishing.end();
        if (last && !straight) finishing.begin(job, row, rows, panel, 1 + both, s.c, s.tiles, true);
      }
    }
  }
  finishing.end();
}
