// RMS norm, plain: what the fast versions are compared with.
#include <cmath>

#include "cpu/norm/norm.h"

namespace oarlock::cpu::reference {

void add_norm_row(const NormRow& row) {
  double squares = 0;
  for (int64_t i = 0; i < row.columns; ++i) {
    if (row.delta != nullptr) {
      row.residual[i] += row.delta_dtype == DType::f32 ? static_cast<const float*>(row.delta)[i]
                                                       : to_float(static_cast<const bf16*>(row.delta)[i]);
    }
    squares += double(row.residual[i]) * double(row.residual[i]);
  }
  double inverse = 1.0 / std::sqrt(squares / double(row.columns) + double(row.epsilon));
  for (int64_t i = 0; i < row.columns; ++i) {
    float value = float(double(row.residual[i]) * inverse * double(row.weight[i]));
    if (row.out_dtype == DType::f32) {
      static_cast<float*>(row.out)[i] = value;
    } else {
      static_cast<bf16*>(row.out)[i] = to_bf16(value);
    }
  }
}

}  // namespace oarlock::cpu::reference
