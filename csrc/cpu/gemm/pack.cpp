// Packing of weights into panels, and reading single rows back.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "cpu/gemm/blocks.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/kernel.h"
#include "cpu/gemm/memory.h"
#include "cpu/gemm/span_rows.h"

namespace oarlock::cpu {
namespace {

WeightFormat dense_format(DType compute) { return compute == DType::f32 ? WeightFormat::f32 : WeightFormat::bf16; }

// What `keep` means for these pieces: the best format that any of them needs.
WeightFormat kept_format(const std::vector<WeightPiece>& pieces, DType compute) {
  bool int8 = false;
  for (const WeightPiece& piece : pieces) {
    if (piece.format == SourceFormat::f32 || piece.format == SourceFormat::f16 || piece.format == SourceFormat::bf16)
      return dense_format(compute);
    int8 |= piece.format == SourceFormat::q8_0;
  }
  return int8 ? WeightFormat::int8_groups : WeightFormat::int4_groups;
}

// Where row n of the stacked pieces comes from.
struct Origin {
  const WeightPiece* piece;
  int64_t row;
};

Origin origin(const std::vector<WeightPiece>& pieces, int64_t n) {
  for (const WeightPiece& piece : pieces) {
    if (n < piece.n) return {&piece, n};
    n -= piece.n;
  }
  return {nullptr, 0};
}

// Panel and column of row n.
struct Position {
  int64_t panel;
  int column;
};

Position position(const PackedWeight& w, int64_t n) {
  if (!w.gated) return {n / kPanel, int(n % kPanel)};
  int64_t half = w.n / 2, within = n % half;
  return {within / kPanel * 2 + (n >= half ? 1 : 0), int(within % kPanel)};
}

// The shift of tile_expand.inl: the largest element near the top of f16's range.
void scale_tiles(PackedWeight& w, ThreadPool& pool) {
  std::vector<float> greatest(pool.size());
  pool.for_each(w.panels, [&](int64_t panel, int thread) {
    float most = greatest[thread];
    for (int64_t g = 0; g < w.k / kGroup; ++g) {
      for (int column = 0; column < kPanel; ++column) {
        Group group = read_packed_scales(w.kernel->layout, w.data + panel * w.panel_bytes, g, column);
        float d = std::fabs(to_float(f16{group.d})), m = std::fabs(to_float(f16{group.m}));
        most = std::max(most, w.format == WeightFormat::int8_groups ? 128 * d : 15 * d + m);
      }
    }
    greatest[thread] = most;
  });
  float most = *std::max_element(greatest.begin(), greatest.end());
  int exponent = most > 0 && std::isfinite(most) ? std::clamp(14 - std::ilogb(most), -14, 15) : 0;
  w.shift = std::ldexp(1.0f, exponent);
  w.unit = std::ldexp(1.0f, 16 - exponent);
}

void write_row(const PackedWeight& w, uint8_t* panel, int column, const Origin& from, float* floats) {
  Layout layout = w.kernel->layout;
  if (layout != Layout::f32 && layout != Layout::bf16 && holds_groups(from.piece->format, w.format)) {
    for (int64_t g = 0; g < w.k / kGroup; ++g)
      write_group(layout, panel, g, column, read_group(*from.piece, from.row, g, w.format));
    return;
  }
  read_floats(*from.piece, from.row, floats);
  if (layout == Layout::f32) {
    for (int64_t i = 0; i < w.k; ++i) std::memcpy(panel + (i * kPanel + column) * 4, floats + i, 4);
  } else if (layout == Layout::bf16) {
    for (int64_t i = 0; i < w.k; i += 2) {
      uint16_t two[2] = {to_bf16(floats[i]).bits, to_bf16(floats[i + 1]).bits};
      std::memcpy(panel + (i * kPanel + column * 2) * 2, two, 4);
    }
  } else if (is_spans(layout)) {
    write_span_row(layout, panel, column, floats, w.k);
  } else {
    for (int64_t g = 0; g < w.k / kGroup; ++g) {
      const float* values = floats + g * kGroup;
      write_group(layout, panel, g, column, quantize_group(values, w.format));
    }
  }
}

}  // namespace

std::unique_ptr<PackedWeight> pack_for(Isa isa, const std::vector<WeightPiece>& pieces, WeightFormat format, bool gated,
                                       DType compute, ThreadPool& pool) {
  require(!pieces.empty(), "a weight needs at least one piece");
  require(compute == DType::bf16 || compute == DType::f32, "activations on the CPU are bf16 or float32");
  auto w = std::make_unique<PackedWeight>();
  w->k = pieces[0].k;
  for (const WeightPiece& piece : pieces) {
    require(piece.n >= 1 && piece.data != nullptr, "a weight's piece is empty");
    require(piece.k == w->k, "pieces of one weight differ in k: ", w->k, " and ", piece.k);
    w->n += piece.n;
  }
  require(w->k >= kGroup && w->k % kGroup == 0, "k = ", w->k, ": products on the CPU need a multiple of ", kGroup);
  require(!gated || (pieces.size() == 2 && pieces[0].n == pieces[1].n),
          "a gated weight is two pieces, gate and up, of equal n");
  w->format = format == WeightFormat::keep ? kept_format(pieces, compute) : format;
  w->kernel = &choose_kernel(isa, w->format, compute);
  w->gated = gated;
  w->compute = compute;
  int64_t rows = gated ? w->n / 2 : w->n;
  w->panels = (rows + kPanel - 1) / kPanel * (gated ? 2 : 1);
  w->panel_bytes = panel_bytes(w->kernel->layout, w->k);
  w->bytes = w->panels * w->panel_bytes;
  Piece memory = allocate_piece(w->bytes);
  w->memory = memory.block;
  w->data = memory.data;
  auto floats = std::make_unique<float[]>(pool.size() * w->k);
  pool.for_each(w->panels, [&](int64_t panel, int thread) {
    int64_t first = gated ? panel / 2 * kPanel : panel * kPanel, offset = gated && panel % 2 ? w->n / 2 : 0;
    for (int64_t row = first; row < std::min(first + kPanel, rows); ++row)
      write_row(*w, memory.data + panel * w->panel_bytes, int(row - first), origin(pieces, row + offset),
                floats.get() + thread * w->k);
  });
  if (w->kernel->layout == Layout::int8_pairs || w->kernel->layout == Layout::int4_pairs) scale_tiles(*w, pool);
  return w;
}

std::unique_ptr<PackedWeight> pack(const std::vector<WeightPiece>& pieces, WeightFormat format, bool gated, DType compute,
                                   ThreadPool& pool) {
  return pack_for(selected_isa(), pieces, format, gated, compute, pool);
}

void unpack_row(const PackedWeight& w, int64_t n, float* out) {
  Position at = position(w, n);
  const uint8_t* panel = w.data + at.panel * w.panel_bytes;
  Layout layout = w.kernel->layout;
  if (layout == Layout::f32) {
    for (int64_t i = 0; i < w.k; ++i) std::memcpy(out + i, panel + (i * kPanel + at.column) * 4, 4);
  } else if (layout == Layout::bf16) {
    for (int64_t i = 0; i < w.k; ++i) {
      bf16 value;
      std::memcpy(&value, panel + (i / 2 * 2 * kPanel + at.column * 2 + i % 2) * 2, 2);
      out[i] = to_float(value);
    }
  } else if (is_spans(layout)) {
    read_span_row(layout, panel, at.column, w.k, out);
  } else {
    for (int64_t g = 0; g < w.k / kGroup; ++g)
      dequantize_group(w.format, read_packed_group(layout, panel, g, at.column), out + g * kGroup);
  }
}

}  // namespace oarlock::cpu
