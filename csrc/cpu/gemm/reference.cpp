#include "cpu/gemm/reference.h"

#include <cmath>
#include <vector>

namespace oarlock::cpu {
namespace {

struct Sum {
  double value = 0, magnitude = 0;
};

Sum dot(const float* x, const float* w, int64_t k) {
  Sum sum;
  for (int64_t i = 0; i < k; ++i) {
    sum.value += double(x[i]) * w[i];
    sum.magnitude += std::fabs(double(x[i]) * w[i]);
  }
  return sum;
}

}  // namespace

void reference_product(const PackedWeight& w, const float* x, int64_t rows, const float* bias, double* out, double* magnitude) {
  int64_t cols = w.gated ? w.n / 2 : w.n;
  std::vector<float> row(w.k), up_row(w.k);
  for (int64_t n = 0; n < cols; ++n) {
    unpack_row(w, n, row.data());
    if (w.gated) unpack_row(w, n + cols, up_row.data());
    for (int64_t r = 0; r < rows; ++r) {
      Sum sum = dot(x + r * w.k, row.data(), w.k);
      double value = sum.value + (bias ? bias[n] : 0);
      if (w.gated) {
        Sum up = dot(x + r * w.k, up_row.data(), w.k);
        double silu = value / (1 + std::exp(-value));
        value = silu * up.value;
        // An error of either half times the other; silu's slope stays under 1.1.
        sum.magnitude = 1.1 * sum.magnitude * std::fabs(up.value) + up.magnitude * std::fabs(silu);
      }
      out[r * cols + n] = value;
      magnitude[r * cols + n] = sum.magnitude;
    }
  }
}

}  // namespace oarlock::cpu
