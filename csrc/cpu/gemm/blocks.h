// Quantized groups of 32: reading them from a checkpoint's blocks or from floats, and their place in a packed panel.
#pragma once

#include <cstdint>

#include "base/ops.h"
#include "cpu/gemm/kernel.h"

namespace oarlock::cpu {

// w = d * (code - 128) for int8_groups, d * code + m for int4_groups; d and m are f16 bits.
struct Group {
  uint16_t d = 0, m = 0;
  uint8_t codes[kGroup] = {};
};

// Bytes of k elements of a checkpoint's row.
int64_t source_row_bytes(SourceFormat format, int64_t k);

// Elements [0, k) of row `row` of a piece as floats.
void read_floats(const WeightPiece& piece, int64_t row, float* out);

// True when the piece's blocks are groups of this format already.
bool holds_groups(SourceFormat source, WeightFormat format);
// Group `index` of row `row`, its bits kept; the piece must hold groups of `format`.
Group read_group(const WeightPiece& piece, int64_t row, int64_t index, WeightFormat format);
// The nearest group to 32 floats: int8_groups symmetric around 0, int4_groups between their least and greatest.
Group quantize_group(const float* values, WeightFormat format);

// The nearest code to value / scale of those from least to greatest; 0 for what is not a number.
int nearest_code(float value, float scale, int least, int greatest);

// A group's place in a panel of a quantized layout.
void write_group(Layout layout, uint8_t* panel, int64_t index, int column, const Group& group);
// A group's d and m, without its codes.
Group read_packed_scales(Layout layout, const uint8_t* panel, int64_t index, int column);
Group read_packed_group(Layout layout, const uint8_t* panel, int64_t index, int column);
// The 32 values, exact in float.
void dequantize_group(WeightFormat format, const Group& group, float* out);

}  // namespace oarlock::cpu
