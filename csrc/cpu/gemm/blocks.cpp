#include "cpu/gemm/blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/dtype.h"

namespace oarlock::cpu {
namespace {

// GGUF block sizes: f16 d, (f16 m,) then 32 bytes or 32 nibbles (byte j: element j low, element j + 16 high).
constexpr int64_t kQ8Block = 34, kQ40Block = 18, kQ41Block = 20;

uint16_t load16(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return bits;
}

// Round to nearest even; overflow becomes infinity.
uint16_t to_f16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00;
  if (bits >= 0x477ff000u) return sign | 0x7c00;
  if (bits < 0x38800000u) {  // below 2^-14: subnormal, in units of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    return sign | uint16_t(std::nearbyint(magnitude * 16777216.0f));
  }
  return sign | uint16_t((bits + 0xfffu + ((bits >> 13) & 1) - 0x38000000u) >> 13);
}

float f16_value(uint16_t bits) { return to_float(f16{bits}); }

// Offset of element i of a group within its codes, and which nibble holds it (int4).
struct Place {
  int byte, shift;
};

Place place(Layout layout, int i, int column) {
  int quad = i / 4, pair = i / 2, element = column * 2 + i % 2;
  switch (layout) {
    case Layout::int8_quads:
      return {quad * 64 + column * 4 + i % 4, 0};
    case Layout::int4_quads:
      return {quad / 2 * 64 + column * 4 + i % 4, quad % 2 * 4};
    case Layout::int8_pairs:
      return {pair * 32 + element, 0};
    default:  // int4_pairs: 16-bit lane `element` of vector pair / 4, nibble pair % 4
      return {pair / 4 * 64 + element * 2 + pair % 4 / 2, pair % 2 * 4};
  }
}

bool is_int4(Layout layout) { return layout == Layout::int4_quads || layout == Layout::int4_pairs; }

}  // namespace

int nearest_code(float value, float scale, int least, int greatest) {
  if (scale == 0 || !std::isfinite(value)) return 0;
  return int(std::clamp(std::nearbyint(value / scale), float(least), float(greatest)));
}

int64_t source_row_bytes(SourceFormat format, int64_t k) {
  switch (format) {
    case SourceFormat::f32:
      return k * 4;
    case SourceFormat::q8_0:
      return k / kGroup * kQ8Block;
    case SourceFormat::q4_0:
      return k / kGroup * kQ40Block;
    case SourceFormat::q4_1:
      return k / kGroup * kQ41Block;
    default:
      return k * 2;
  }
}

void read_floats(const WeightPiece& piece, int64_t row, float* out) {
  const uint8_t* from = static_cast<const uint8_t*>(piece.data) + row * source_row_bytes(piece.format, piece.k);
  if (piece.format == SourceFormat::f32) {
    std::memcpy(out, from, piece.k * 4);
  } else if (piece.format == SourceFormat::bf16) {
    for (int64_t i = 0; i < piece.k; ++i) out[i] = to_float(bf16{load16(from + 2 * i)});
  } else if (piece.format == SourceFormat::f16) {
    for (int64_t i = 0; i < piece.k; ++i) out[i] = f16_value(load16(from + 2 * i));
  } else {
    WeightFormat format = piece.format == SourceFormat::q8_0 ? WeightFormat::int8_groups : WeightFormat::int4_groups;
    for (int64_t g = 0; g < piece.k / kGroup; ++g)
      dequantize_group(format, read_group(piece, row, g, format), out + g * kGroup);
  }
}

bool holds_groups(SourceFormat source, WeightFormat format) {
  if (format == WeightFormat::int8_groups) return source == SourceFormat::q8_0;
  return format == WeightFormat::int4_groups && (source == SourceFormat::q4_0 || source == SourceFormat::q4_1);
}

Group read_group(const WeightPiece& piece, int64_t row, int64_t index, WeightFormat format) {
  const uint8_t* from = static_cast<const uint8_t*>(piece.data) + row * source_row_bytes(piece.format, piece.k);
  from += source_row_bytes(piece.format, index * kGroup);
  Group group;
  group.d = load16(from);
  if (format == WeightFormat::int8_groups) {
    for (int i = 0; i < kGroup; ++i) group.codes[i] = uint8_t(from[2 + i] + 128);  // int8 q as q + 128
    return group;
  }
  // q4_0's implied offset; a multiple of d by a power of two is exact in f16, short of overflow.
  bool has_offset = piece.format == SourceFormat::q4_1;
  group.m = has_offset ? load16(from + 2) : to_f16(-8.0f * f16_value(group.d));
  const uint8_t* nibbles = from + (has_offset ? 4 : 2);
  for (int i = 0; i < 16; ++i) {
    group.codes[i] = nibbles[i] & 15;
    group.codes[i + 16] = nibbles[i] >> 4;
  }
  return group;
}

Group quantize_group(const float* values, WeightFormat format) {
  Group group;
  if (format == WeightFormat::int8_groups) {
    float greatest = 0;
    for (int i = 0; i < kGroup; ++i) greatest = std::max(greatest, std::fabs(values[i]));
    group.d = to_f16(greatest / 127.0f);
    float d = f16_value(group.d);
    for (int i = 0; i < kGroup; ++i) group.codes[i] = uint8_t(nearest_code(values[i], d, -127, 127) + 128);
    return group;
  }
  float least = *std::min_element(values, values + kGroup), greatest = *std::max_element(values, values + kGroup);
  group.m = to_f16(least);
  group.d = to_f16((greatest - f16_value(group.m)) / 15.0f);
  float d = f16_value(group.d), m = f16_value(group.m);
  for (int i = 0; i < kGroup; ++i) group.codes[i] = uint8_t(nearest_code(values[i] - m, d, 0, 15));
  return group;
}

void write_group(Layout layout, uint8_t* panel, int64_t index, int column, const Group& group) {
  bool int4 = is_int4(layout);
  GroupView view = int4 ? group_view<true>(panel, index) : group_view<false>(panel, index);
  std::memcpy(const_cast<uint8_t*>(view.d) + 2 * column, &group.d, 2);
  if (int4) std::memcpy(const_cast<uint8_t*>(view.m) + 2 * column, &group.m, 2);
  uint8_t* codes = const_cast<uint8_t*>(view.codes);
  for (int i = 0; i < kGroup; ++i) {
    Place at = place(layout, i, column);
    if (int4) {
      codes[at.byte] = uint8_t((codes[at.byte] & (0xf0 >> at.shift)) | group.codes[i] << at.shift);
    } else {
      codes[at.byte] = layout == Layout::int8_pairs ? uint8_t(group.codes[i] - 128) : group.codes[i];
    }
  }
}

Group read_packed_scales(Layout layout, const uint8_t* panel, int64_t index, int column) {
  bool int4 = is_int4(layout);
  GroupView view = int4 ? group_view<true>(panel, index) : group_view<false>(panel, index);
  Group group;
  group.d = load16(view.d + 2 * column);
  if (int4) group.m = load16(view.m + 2 * column);
  return group;
}

Group read_packed_group(Layout layout, const uint8_t* panel, int64_t index, int column) {
  bool int4 = is_int4(layout);
  const uint8_t* codes = int4 ? group_view<true>(panel, index).codes : group_view<false>(panel, index).codes;
  Group group = read_packed_scales(layout, panel, index, column);
  for (int i = 0; i < kGroup; ++i) {
    Place at = place(layout, i, column);
    uint8_t byte = codes[at.byte];
    group.codes[i] = int4 ? byte >> at.shift & 15 : layout == Layout::int8_pairs ? uint8_t(byte + 128) : byte;
  }
  return group;
}

void dequantize_group(WeightFormat format, const Group& group, float* out) {
  float d = f16_value(group.d), m = f16_value(group.m);
  for (int i = 0; i < kGroup; ++i)
    out[i] = format == WeightFormat::int8_groups ? d * float(int(group.codes[i]) - 128) : d * float(group.codes[i]) + m;
}

}  // namespace oarlock::cpu
