#include "cpu/gemm/span_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/gemm/blocks.h"

namespace oarlock::cpu {
namespace {

using Four = float __attribute__((vector_size(16)));
using FourBits = int32_t __attribute__((vector_size(16)));

constexpr int kFours = kGroup / 4;
constexpr int kLeastCode = -128, kGreatestCode = 127;  // of opened codes
constexpr int kCodes = 15;                             // the greatest that is stored

// Where code i of a column lies in quads, and for int4 its byte and the place of its nibble.
int64_t quad_place(int64_t i, int column) { return i / 4 * 64 + column * 4 + i % 4; }
int64_t nibble_place(int64_t i, int column) { return 64 + i / 8 * 64 + column * 4 + i % 4; }
int nibble_shift(int64_t i) { return int(i / 4 % 2 * 4); }

// A group of an int4 span: values s * code + z, in units of the span's scale, and the sum of the squares of their errors.
struct Levels {
  int s = 0, z = 0;
  float error = std::numeric_limits<float>::infinity();
};

float sum(Four v) { return (v[0] + v[1]) + (v[2] + v[3]); }

// The codes nearest to v.
OARLOCK_INLINE Four codes_of(Four v, float inverse_s, float z) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Four code = (v - z) * inverse_s;
  code = code > 0.0f ? code : Four{};
  code = code < float(kCodes) ? code : Four{} + float(kCodes);
  return (code + kMagic) - kMagic;
}

float inverse_of(int s) { return s ? 1.0f / float(s) : 0.0f; }

int fitting_offset(float z, int s) {
  return int(std::clamp(std::nearbyint(z), float(kLeastCode), float(kGreatestCode - kCodes * s)));
}

// The better of the steps around an even division of the range, each with the offset that is best for its codes.
Levels fit_group(const Four* v, float least, float greatest) {
  Levels best;
  const int even = int((greatest - least) / kCodes);
  for (int s = std::min(even, kMostMultiplier); s <= std::min(even + 1, kMostMultiplier); ++s) {
    const float inverse = inverse_of(s), step = float(s);
    Levels levels;
    levels.s = s;
    levels.z = fitting_offset((least + greatest - float(kCodes) * step) / 2, s);
    Four rest{}, error{};
    for (int i = 0; i < kFours; ++i) rest += v[i] - codes_of(v[i], inverse, float(levels.z)) * step;
    levels.z = fitting_offset(sum(rest) / kGroup, s);
    for (int i = 0; i < kFours; ++i) {
      const Four miss = v[i] - codes_of(v[i], inverse, float(levels.z)) * step - float(levels.z);
      error += miss * miss;
    }
    levels.error = sum(error);
    if (levels.error < best.error) best = levels;
  }
  return best;
}

void scaled(const float* values, float by, Four* to) {
  std::memcpy(to, values, kGroup * sizeof(float));
  for (int i = 0; i < kFours; ++i) to[i] *= by;
}

struct Range {
  float least, greatest;
};

Range range_of(const float* values) {
  Four v[kFours];
  scaled(values, 1, v);
  Four least = v[0], greatest = v[0];
  for (int i = 1; i < kFours; ++i) {
    least = v[i] < least ? v[i] : least;
    greatest = v[i] > greatest ? v[i] : greatest;
  }
  return {std::min({least[0], least[1], least[2], least[3]}), std::max({greatest[0], greatest[1], greatest[2], greatest[3]})};
}

constexpr int kMostGroups = kMostSpan * 2;
constexpr float kLeastScale = 1e-30f;  // whose inverse is far from infinite

// A span's scale and its groups.
struct Int4Span {
  float scale = 0, error = std::numeric_limits<float>::infinity();
  Levels groups[kMostGroups];
};

// Which unit suits the groups' steps, all of which must be multiples of it, is tried out.
Int4Span fit_span(const float* values, int groups) {
  Range ranges[kMostGroups];
  float most = 0;
  for (int g = 0; g < groups; ++g) {
    ranges[g] = range_of(values + g * kGroup);
    most = std::max({most, -ranges[g].least / float(kGreatestCode), ranges[g].greatest / float(kGreatestCode),
                     (ranges[g].greatest - ranges[g].least) / float(kCodes * kMostMultiplier)});
  }
  Int4Span best;
  if (!(most > kLeastScale)) return best;
  for (float stretch : {1.0f, 1.05f}) {
    Int4Span span;
    span.scale = most * stretch;
    span.error = 0;
    const float inverse = 1.0f / span.scale;
    for (int g = 0; g < groups && span.error < best.error; ++g) {
      Four v[kFours];
      scaled(values + g * kGroup, inverse, v);
      span.groups[g] = fit_group(v, ranges[g].least * inverse, ranges[g].greatest * inverse);
      span.error += span.groups[g].error * stretch * stretch;
    }
    if (span.error < best.error) best = span;
  }
  return best;
}

void write_int8_span(uint8_t* tiles, int column, const float* values, int64_t count) {
  float greatest = 0;
  for (int64_t i = 0; i < count; ++i) greatest = std::max(greatest, std::fabs(values[i]));
  const float scale = greatest / 127.0f;
  std::memcpy(tiles - kSpanScales + column * 4, &scale, 4);
  for (int64_t i = 0; i < count; ++i) tiles[quad_place(i, column)] = uint8_t(nearest_code(values[i], scale, -127, 127));
}

void write_int4_span(uint8_t* tiles, int column, const float* from, int64_t count) {
  float values[kMostGroups * kGroup];
  for (int64_t i = 0; i < count; ++i) values[i] = std::isfinite(from[i]) ? from[i] : 0;  // as nearest_code has it
  const Int4Span span = fit_span(values, int(count / kGroup));
  const float inverse = span.scale > 0 ? 1.0f / span.scale : 0.0f;
  std::memcpy(tiles - kSpanScales + column * 4, &span.scale, 4);
  for (int64_t group = 0; group < count / kGroup; ++group) {
    const Levels& levels = span.groups[group];
    uint8_t* tile = tiles + group / 2 * kInt4Tile;
    tile[group % 2 * kPanel + column] = uint8_t(levels.s);
    tile[(2 + group % 2) * kPanel + column] = uint8_t(levels.z);
    Four v[kFours];
    scaled(values + group * kGroup, inverse, v);
    for (int i = 0; i < kFours; ++i) {
      const Four codes = codes_of(v[i], inverse_of(levels.s), float(levels.z));
      const int64_t at = group % 2 * kGroup + i * 4;
      for (int j = 0; j < 4; ++j) tile[nibble_place(at + j, column)] |= uint8_t(int(codes[j]) << nibble_shift(at));
    }
  }
}

int int4_code(const uint8_t* tiles, int64_t i, int column) {
  const uint8_t* tile = tiles + i / 64 * kInt4Tile;
  const int64_t half = i / kGroup % 2;
  const int code = tile[nibble_place(i % 64, column)] >> nibble_shift(i) & 15;
  return tile[half * kPanel + column] * code + int8_t(tile[(2 + half) * kPanel + column]);
}

}  // namespace

void write_span_row(Layout layout, uint8_t* panel, int column, const float* values, int64_t k) {
  const int64_t span = span_tiles(k);
  for (int64_t first = 0; first < k; first += span * 64) {
    uint8_t* tiles = panel + span_place(first / 64, span, span_tile_bytes(layout));
    const int64_t count = std::min(span * 64, k - first);
    layout == Layout::int4_spans ? write_int4_span(tiles, column, values + first, count)
                                 : write_int8_span(tiles, column, values + first, count);
  }
}

void read_span_row(Layout layout, const uint8_t* panel, int column, int64_t k, float* out) {
  const int64_t span = span_tiles(k);
  for (int64_t first = 0; first < k; first += span * 64) {
    const uint8_t* tiles = panel + span_place(first / 64, span, span_tile_bytes(layout));
    float scale;
    std::memcpy(&scale, tiles - kSpanScales + column * 4, 4);
    for (int64_t i = 0; i < std::min(span * 64, k - first); ++i) {
      out[first + i] =
          scale * float(layout == Layout::int4_spans ? int4_code(tiles, i, column) : int8_t(tiles[quad_place(i, column)]));
    }
  }
}

}  // namespace oarlock::cpu
