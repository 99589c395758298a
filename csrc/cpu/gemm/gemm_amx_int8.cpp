// Products by AMX integer tiles (TDPBSSD) for int8 and int4 weights in spans: digits of x by int8 weights straight from their
// panels, or by int4 weights opened to the same. A span's sums are exact and scaled as in spans.inl, so that tiles give the
// bits of VPDPBUSD, which a row alone is given to.
//
// Tiles of x: rows in blocks of 8, a block's tiles along k one after the other, each the rows' high digits, then their low
// ones, [16][64] bytes = 1 KiB. A block thus costs what 16 rows of bf16 cost, for twice the k.
#include <immintrin.h>

#include "cpu/gemm/kernel.h"

namespace oarlock::cpu {
namespace {

#include "cpu/gemm/span_digits.inl"
#include "cpu/gemm/span_few_rows.inl"
#include "cpu/gemm/span_sums.inl"
#include "cpu/gemm/tiles.inl"

constexpr int64_t kMostSteps = 32;  // tiles along k in one go, of 64 k: two panels of them, and 256 rows of x, fit the L2 cache
constexpr int kTileSums = 2 * 16 * kPair;  // of two blocks of x by two panels
static_assert(kOpened >= 2 * kTileSums * 4 && kOpened >= 2 * 16 * kStride * 4, "sums need more room");
static_assert(kWeightScratch >= kOpened + 2 * kMostSteps * kTile && kWeightScratch >= kOpened + kHeldBytes, "no room to open");

// Digits of x in tiles, or of a single row one tile after the other. Fewer than 8 rows make shorter tiles.
void tile_digits(const Prepare& job, int64_t first, int64_t last) {
  if (job.x.rows == 1) return digit_rows(job, first, last);
  const int height = block_height(job.x.rows);
  for (int64_t row = first; row < last; ++row) {
    uint8_t* high = job.data + row / kBlockRows * kBlockRows * job.stride + row % kBlockRows * 64;
    job.scales[row] =
        digit_row<false>(job.x.as<uint16_t>() + row * job.x.stride, job.x.cols, high, high + height * 64, kTile, nullptr);
  }
}

// One row: the time to read the weights, four panels at once, since several streams read faster than one.
template <bool kInt4>
void one_row(const Product& job) {
  SpanJob row;
  row.x = job.x->data;
  row.terms = job.x->terms;
  row.scales = job.x->scales;
  row.stride = row.term_row = 0;
  row.panel_bytes = job.panel_bytes;
  row.tiles = whole_tiles(job.x->k) / 64;
  row.span = span_tiles(job.x->k);
  row.first = 0;
  row.last = (row.tiles + row.span - 1) / row.span;
  row.fresh = row.complete = true;
  row.c = job.c;
  for (int panel = 0; panel < job.panels; panel += kMaxPanels) {
    const int width = job.panels - panel < kMaxPanels ? job.panels - panel : kMaxPanels;
    row.weights = job.weights + panel * job.panel_bytes;
    row.next = following(job, panel, width);
    if (width == 4) span_block<Digits<kInt4>, 1, 4>(row);
    if (width == 3) span_block<Digits<kInt4>, 1, 3>(row);
    if (width == 2) span_block<Digits<kInt4>, 1, 2>(row);
    if (width == 1) span_block<Digits<kInt4>, 1, 1>(row);
    finish_sums(job, 0, 1, panel, width, job.c, kStride);
  }
}

// The tiles of `panels` panels from `panel` on, opened one after the other, `stride` bytes between panels: those of k from
// `first` to `last`, which begin spans of `length`.
void open_panels(const Product& job, int panel, int panels, int64_t first, int64_t last, int64_t length, uint8_t* to,
                 int64_t stride) {
  for (int p = 0; p < panels; ++p, to += stride) {
    const uint8_t* weights = job.weights + (panel + p) * job.panel_bytes;
    for (int64_t tile = first; tile < last; ++tile)
      open_tile(weights + span_place(tile, length, kInt4Tile), to + (tile - first) * kTile);
  }
}

// A tile that stays in the L1 cache for later steps, or one that had better not drive those out of it.
#define LOAD_TILE(tile, from, stays)    \
  if (stays) {                          \
    _tile_loadd(tile, from, 64);        \
  } else {                              \
    _tile_stream_loadd(tile, from, 64); \
  }

// 16 rows (kBlocks 2) or 8 by one or two panels over one span; c has rows of 32 sums. In the L1 cache stays x (kHeld), or the
// panels do.
template <bool kHeld, int kBlocks, int kPanels>
void rectangle(const uint8_t* x, int64_t block, const uint8_t* w, int64_t panel_bytes, int64_t tiles, int32_t* c, Ahead& ahead,
               Adding& adding) {
  constexpr int kRowBytes = kPair * 4;
  int32_t* lower = c + 16 * kPair;
  Ahead near = ahead;
  _tile_zero(0);
  if (kBlocks > 1) _tile_zero(2);
  if (kPanels > 1) _tile_zero(1);
  if (kBlocks > 1 && kPanels > 1) _tile_zero(3);
  for (int64_t tile = 0; tile < tiles; ++tile, x += kTile, w += kTile) {
    near.step();
    adding.step();
    LOAD_TILE(4, x, kHeld)
    LOAD_TILE(6, w, !kHeld)
    _tile_dpbssd(0, 4, 6);
    if (kBlocks > 1) {
      LOAD_TILE(5, x + block, kHeld)
      _tile_dpbssd(2, 5, 6);
    }
    if (kPanels > 1) {
      LOAD_TILE(7, w + panel_bytes, !kHeld)
      _tile_dpbssd(1, 4, 7);
    }
    if (kBlocks > 1 && kPanels > 1) _tile_dpbssd(3, 5, 7);
  }
  ahead = near;
  _tile_stored(0, c, kRowBytes);
  if (kBlocks > 1) _tile_stored(2, lower, kRowBytes);
  if (kPanels > 1) _tile_stored(1, c + 16, kRowBytes);
  if (kBlocks > 1 && kPanels > 1) _tile_stored(3, lower + 16, kRowBytes);
}

// Up to 16 rows by up to two panels, `panel` bytes from one to the other.
template <bool kHeld>
OARLOCK_INLINE void span_step(const Product& job, int row, int rows, int panels, int64_t first, int64_t tiles, const uint8_t* w,
                              int64_t panel, int32_t* c, Ahead& ahead, Adding& adding) {
  const int64_t block = kBlockRows * job.x->stride;
  const uint8_t* x = job.x->data + (job.row0 + row) * job.x->stride + first * kTile;
  if (rows > kBlockRows) {
    panels > 1 ? rectangle<kHeld, 2, 2>(x, block, w, panel, tiles, c, ahead, adding)
               : rectangle<kHeld, 2, 1>(x, block, w, panel, tiles, c, ahead, adding);
  } else {
    panels > 1 ? rectangle<kHeld, 1, 2>(x, block, w, panel, tiles, c, ahead, adding)
               : rectangle<kHeld, 1, 1>(x, block, w, panel, tiles, c, ahead, adding);
  }
}

// More rows: pairs of panels, whose weights stay close while all rows pass. Sums that wait for the next chunk of k rest in c,
// [pair][row][32].
template <bool kInt4>
void many_rows(const Product& job) {
  constexpr int kStep = 2 * kBlockRows;
  constexpr int64_t kBytes = kInt4 ? kInt4Tile : kInt8Tile;
  const int64_t tiles = whole_tiles(job.x->k) / 64, length = span_tiles(job.x->k), spans = (tiles + length - 1) / length;
  const int64_t most = kMostSteps / length, chunks = (spans + most - 1) / most, chunk = (spans + chunks - 1) / chunks;
  int32_t* sums = reinterpret_cast<int32_t*>(job.scratch);
  int turn = 0;
  Adding adding;
  for (int64_t first = 0; first < spans; first += chunk) {
    const int64_t end = first + chunk < spans ? first + chunk : spans;
    const int64_t record = span_bytes(length, kBytes), start = first * record, bytes = (end - first) * record;
    const int64_t last = end * length < tiles ? end * length : tiles, stride = kInt4 ? kMostSteps * kTile : job.panel_bytes;
    for (int panel = 0; panel < job.panels; panel += 2) {
      const bool both = job.panels - panel > 1;
      // What comes after this pair: the next one, else the first with the next chunk of k, else the next piece of work.
      const uint8_t* next = panel + 2 < job.panels ? job.weights + (panel + 2) * job.panel_bytes + start
                            : end == spans         ? job.ahead
                                                   : job.weights + start + bytes;
      Ahead ahead;
      if (next) ahead = Ahead(next, job.panel_bytes, bytes, (job.rows + kStep - 1) / kStep * (end - first) * length);
      uint8_t* opened = job.scratch + kOpened;
      if (kInt4) open_panels(job, panel, 1 + both, first * length, last, length, opened, stride);
      for (int row = 0; row < job.rows; row += kStep) {
        const int rows = job.rows - row < kStep ? job.rows - row : kStep;
        float* acc = job.c + (chunks == 1 ? 0 : (panel / 2 * kMaxRows + row) * kPair);
        for (int64_t span = first; span < end; ++span) {
          const uint8_t* w = kInt4 ? opened + (span - first) * length * kTile
                                   : job.weights + panel * job.panel_bytes + span_place(span * length, length, kBytes);
          const int64_t count = tiles - span * length < length ? tiles - span * length : length;
          int32_t* c = sums + (turn++ & 1) * kTileSums;
          span_step<false>(job, row, rows, 1 + both, span * length, count, w, stride, c, ahead, adding);
          adding.end();
          adding.begin(job, sums_of(job, c, kPair, kBlockRows, panel, 1 + both, span, record), row, rows, panel, 1 + both, acc,
                       span == 0, span + 1 == spans, count);
        }
      }
    }
  }
  adding.end();
}

// Many rows: 16 rows of x stay in the L1 cache while a piece's panels pass by from the L2 cache, which keeps them for all of
// its rows, span by span; int4 panels are opened for all of these. Sums that wait for the next span rest in c, [pair][row][32].
template <bool kInt4>
void held_rows(const Product& job) {
  constexpr int kStep = 2 * kBlockRows;
  constexpr int64_t kBytes = kInt4 ? kInt4Tile : kInt8Tile;
  const int64_t tiles = whole_tiles(job.x->k) / 64, length = span_tiles(job.x->k), spans = (tiles + length - 1) / length;
  int32_t* sums = reinterpret_cast<int32_t*>(job.scratch);
  Ahead ahead;
  if (job.ahead) {
    const int64_t half = job.panels * job.panel_bytes / 2;
    ahead = Ahead(job.ahead, half, half, (job.rows + kStep - 1) / kStep * ((job.panels + 1) / 2) * tiles);
  }
  const int64_t record = span_bytes(length, kBytes), stride = kInt4 ? tiles * kTile : job.panel_bytes;
  uint8_t* opened = job.scratch + kOpened;
  Adding adding;
  int turn = 0;
  for (int row = 0; row < job.rows; row += kStep) {
    const int rows = job.rows - row < kStep ? job.rows - row : kStep;
    for (int64_t span = 0; span < spans; ++span) {
      const int64_t first = span * length, count = tiles - first < length ? tiles - first : length;
      for (int panel = 0; panel < job.panels; panel += 2) {
        const int panels = job.panels - panel > 1 ? 2 : 1;
        uint8_t* pair = opened + panel * stride + first * kTile;
        if (kInt4 && row == 0) open_panels(job, panel, panels, first, first + count, length, pair, stride);
        const uint8_t* w = kInt4 ? pair : job.weights + panel * job.panel_bytes + span_place(first, length, kBytes);
        int32_t* c = sums + (turn++ & 1) * kTileSums;
        span_step<true>(job, row, rows, panels, first, count, w, stride, c, ahead, adding);
        adding.end();
        adding.begin(job, sums_of(job, c, kPair, kBlockRows, panel, panels, span, record), row, rows, panel, panels,
                     job.c + panel / 2 * kStep * kPair, span == 0, span + 1 == spans, count);
      }
    }
  }
  adding.end();
}

template <bool kInt4>
void product(const Product& job) {
  if (job.x->rows == 1) return one_row<kInt4>(job);  // without tiles
  configure_tiles(2 * block_height(job.x->rows));
  if (job.x->rows <= kBlockRows) {
    few_rows<kInt4>(job);
  } else {
    const bool held = job.x->rows > kNearRows && opens_whole(kInt4 ? Layout::int4_spans : Layout::int8_spans, job.x->k);
    held ? held_rows<kInt4>(job) : many_rows<kInt4>(job);
  }
  _tile_release();
}

}  // namespace

const Kernel kAmxInt8Spans = {"amx int8",  Layout::int8_spans, Input::span_digits, 1 << 20,
                              kDeepPanels, tile_digits,        product<false>};
const Kernel kAmxInt4Spans = {"amx int4",  Layout::int4_spans, Input::span_digits, 1 << 20,
                              kDeepPanels, tile_digits,        product<true>};

}  // namespace oarlock::cpu
