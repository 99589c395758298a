// What a kernel file gives to the driver: a table of functions, and the layouts they read. Internal to the products.
//
// Kernel files are compiled for an instruction set each, so nothing here may become a shared out-of-line function: the
// linker would keep one copy for all. Everything is forced inline, and the files' own code is in unnamed namespaces.
#pragma once

#include <cstdint>

#include "base/isa.h"
#include "base/ops.h"

#define OARLOCK_INLINE static inline __attribute__((always_inline))

namespace oarlock::cpu {

constexpr int kPanel = 16;                    // output rows of a panel
constexpr int kGroup = 32;                    // elements along k that share a scale; k is a multiple of it
constexpr int kMaxPanels = 4;                 // panels that a kernel works on at once
constexpr int kDeepPanels = 16;               // most panels of one Product (AMX)
constexpr int kHeldPanels = 32;               // the same, where a piece's panels stay in the L2 cache for all rows
constexpr int64_t kNearRows = 128;            // up to which each thread had better not read all of the weights
constexpr int kMaxRows = 256;                 // most rows of one Product, except where sums need no rest
constexpr int kStride = kMaxPanels * kPanel;  // floats from a row of sums to the next
constexpr int64_t kSums = kMaxRows * kDeepPanels * kPanel;
constexpr int64_t kHeldBytes = 384 << 10;  // of panels that stay in the L2 cache for a piece's rows, the next ones beside them
constexpr int64_t kWeightScratch = kHeldBytes + (16 << 10);  // bytes a thread has for weights expanded on the way, and sums

// Panels' layouts. f32: [k][16]. bf16: [k/2][16][2], so that 32 of k are one 1 KiB tile. The quantized ones are records
// of two groups: f16 scales d[2][16], for int4 f16 offsets m[2][16], then the codes of each group: `quads` [8][16][4]
// (int8 as u = q + 128; int4: even quads in low nibbles, odd ones in high), `pairs` [16][16][2] (int8 as q; int4 see amx.cpp).
// int8_spans: a record a span, float32 scales [16], then tiles of 64 k, q as [16][16][4]; k is filled up to a multiple of 64
// with zeros. int4_spans: the same in smaller tiles, whose two groups of 32 k have multipliers s[2][16] (0 to 15) and offsets
// z[2][16], then codes as in int4_quads; opened, q = s * code + z, which fits 8 bits.
enum class Layout : uint8_t { f32, bf16, int8_quads, int4_quads, int8_pairs, int4_pairs, int8_spans, int4_spans };

constexpr int64_t kSpanScales = kPanel * 4;  // bytes before the tiles of a span
constexpr int64_t kMostSpan = 9;             // tiles of 64 k that share a scale; sums of up to 16 fit 32 bits
constexpr int64_t kInt8Tile = 1024, kInt4Tile = 64 + 512;
constexpr int kMostMultiplier = 15;
constexpr int64_t kInt8Record = 2 * (32 + 512), kInt4Record = 2 * (32 + 32 + 256);

// k as the codes of int8_spans and what they meet are stored.
OARLOCK_INLINE int64_t whole_tiles(int64_t k) { return (k + 63) / 64 * 64; }
// Tiles of a span, but for the last, which may have fewer: as even as k allows.
OARLOCK_INLINE int64_t span_tiles(int64_t k) {
  int64_t tiles = whole_tiles(k) / 64, spans = (tiles + kMostSpan - 1) / kMostSpan;
  return (tiles + spans - 1) / spans;
}
OARLOCK_INLINE bool is_spans(Layout layout) { return layout == Layout::int8_spans || layout == Layout::int4_spans; }
OARLOCK_INLINE int64_t span_tile_bytes(Layout layout) { return layout == Layout::int4_spans ? kInt4Tile : kInt8Tile; }
OARLOCK_INLINE int64_t span_bytes(int64_t tiles, int64_t tile_bytes) { return kSpanScales + tiles * tile_bytes; }
// Where tile `tile` of k lies in a panel of spans of `span` tiles.
OARLOCK_INLINE int64_t span_place(int64_t tile, int64_t span, int64_t tile_bytes) {
  return (tile / span + 1) * kSpanScales + tile * tile_bytes;
}
// Bytes of a panel that tiles are multiplied by, opened if need be, and whether two of them fit a thread's scratch memory.
OARLOCK_INLINE int64_t opened_bytes(Layout layout, int64_t k, int64_t panel_bytes) {
  return layout == Layout::int4_spans ? whole_tiles(k) / 64 * kInt8Tile : panel_bytes;
}
OARLOCK_INLINE bool opens_whole(Layout layout, int64_t k) {
  return layout != Layout::int4_spans || 2 * opened_bytes(layout, k, 0) <= kHeldBytes;
}

OARLOCK_INLINE int64_t panel_bytes(Layout layout, int64_t k) {
  int64_t records = (k / kGroup + 1) / 2;
  if (is_spans(layout)) {
    int64_t tiles = whole_tiles(k) / 64, span = span_tiles(k);
    return (tiles + span - 1) / span * kSpanScales + tiles * span_tile_bytes(layout);
  }
  if (layout == Layout::f32) return k * kPanel * 4;
  if (layout == Layout::bf16) return k * kPanel * 2;
  return records * (layout == Layout::int8_quads || layout == Layout::int8_pairs ? kInt8Record : kInt4Record);
}

// Where a group's parts lie in a quantized panel.
struct GroupView {
  const uint8_t* d;  // f16[16]
  const uint8_t* m;  // f16[16], int4 only
  const uint8_t* codes;
};

template <bool kInt4>
OARLOCK_INLINE GroupView group_view(const uint8_t* panel, int64_t group) {
  const uint8_t* record = panel + (group >> 1) * (kInt4 ? kInt4Record : kInt8Record);
  int64_t half = group & 1;
  if (kInt4) return {record + 32 * half, record + 64 + 32 * half, record + 128 + 256 * half};
  return {record + 32 * half, nullptr, record + 64 + 512 * half};
}

// Activations as a kernel's prepare() leaves them: row r at data + r * stride (AMX: see gemm_amx.cpp).
// The integer kernels also have a scale a row, and 4-byte terms: by group or span -128 * sum(q) as int32 for int8, sum(q) as
// float for int4.
struct Activations {
  const uint8_t* data = nullptr;
  int64_t stride = 0;
  int64_t rows = 0, k = 0;
  const float* scales = nullptr;
  const uint8_t* terms = nullptr;
  bool in_place = false;  // x itself, row by row, whatever the kernel's input
};

// Bytes of a row's terms.
OARLOCK_INLINE int64_t term_stride(int64_t k) { return (k / kGroup * 4 + 63) / 64 * 64; }

// The same, writable, and the source rows.
struct Prepare {
  Tensor x;
  uint8_t* data = nullptr;
  int64_t stride = 0;
  float* scales = nullptr;
  uint8_t* terms = nullptr;
  bool int4 = false;
};

// One piece of work: rows [row0, row0 + rows) of x times some panels, finished (bias, or silu(gate) * up of panel pairs;
// rounding) and written to out. `out`, `cols` and `bias` begin at the first panel's column, `out` at row0.
struct Product {
  const Activations* x = nullptr;
  int64_t row0 = 0;
  int rows = 0, panels = 0;
  const uint8_t* weights = nullptr;
  int64_t panel_bytes = 0;
  const uint8_t* ahead = nullptr;  // panels that this thread will probably want next, or null
  int64_t ahead_panel_bytes = 0;   // of these: they may be another weight's
  float shift = 1, unit = 1;       // tiles of quantized weights: w is scaled by shift, the sums by unit
  void* out = nullptr;
  DType out_dtype = DType::bf16;
  int64_t out_stride = 0;  // elements
  int64_t cols = 0;        // valid columns of out
  const float* bias = nullptr;
  bool gated = false;
  float* c = nullptr;          // kSums floats for sums on the way
  uint8_t* scratch = nullptr;  // kWeightScratch bytes
};

// What prepare() makes of x. Digits and words are 15-bit integers, by groups (integer.inl) or by spans (spans.inl).
enum class Input : uint8_t { as_is, f32, tiles, raised, digits, words, span_digits, span_words };

struct Kernel {
  const char* name;
  Layout layout;
  Input input;
  int64_t row_bytes;  // of activations that one piece of work should keep in the L2 cache
  int most_panels;    // of one piece of work
  void (*prepare)(const Prepare&, int64_t first_row, int64_t last_row);  // first_row a multiple of 16
  void (*product)(const Product&);
};

// The kernels of an instruction set, by layout; compiled in a file each.
extern const Kernel kAvx2F32, kAvx2Bf16, kAvx2Int8, kAvx2Int4, kAvx2Int8F32, kAvx2Int4F32;
extern const Kernel kAvx512F32, kAvx512Bf16, kAvx512Int8, kAvx512Int4, kAvx512Int8F32, kAvx512Int4F32;
extern const Kernel kAvx2Int8Spans, kAvx2Int8SpansF32, kAvx512Int8Spans, kAvx512Int8SpansF32, kVnniInt8Spans, kAmxInt8Spans;
extern const Kernel kAvx2Int4Spans, kAvx2Int4SpansF32, kAvx512Int4Spans, kAvx512Int4SpansF32, kVnniInt4Spans, kAmxInt4Spans;
extern const Kernel kVnniInt8, kVnniInt4;
extern const Kernel kDotBf16;
extern const Kernel kAmxBf16, kAmxInt8, kAmxInt4;

// The kernel for a weight format (all but f16 and keep) and activations of `compute` on an instruction set.
const Kernel& choose_kernel(Isa isa, WeightFormat format, DType compute);

}  // namespace oarlock::cpu
