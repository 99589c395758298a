// Rows of weights by spans: quantized into the panels of int8_spans and int4_spans, and read back.
#pragma once

#include <cstdint>

#include "cpu/gemm/kernel.h"

namespace oarlock::cpu {

// Column `column` of a panel, zero before, from k floats, which are quantized.
void write_span_row(Layout layout, uint8_t* panel, int column, const float* values, int64_t k);
// The same as k floats, exactly: scale * code.
void read_span_row(Layout layout, const uint8_t* panel, int column, int64_t k, float* out);

}  // namespace oarlock::cpu
