// The products in plain loops, for checks: float32 throughout, weights as unpack_row gives them.
#pragma once

#include "cpu/gemm/gemm.h"

namespace oarlock::cpu {

// out[rows][n] (gated: n / 2) in double, and in `magnitude` the sum of |x * w| of each output, which bounds any rounding
// (gated: of the up half). x: [rows][k] floats.
void reference_product(const PackedWeight& w, const float* x, int64_t rows, const float* bias, double* out, double* magnitude);

}  // namespace oarlock::cpu
