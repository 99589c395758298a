// RMS norm with the residual sum before it, for the rows of a step.
#pragma once

#include "base/isa.h"
#include "base/ops.h"
#include "base/threads.h"

namespace oarlock::cpu {

// Rows are summed in an order fixed by the instruction set and the number of columns. Holds no memory of its own.
class Norm {
 public:
  explicit Norm(ThreadPool& pool, Isa isa = selected_isa());

  // residual (float32 [T, H]) += delta when there is one; out (bf16 or f32 [T, H]) = residual / rms(residual) * weight[H],
  // where rms(x) = sqrt(mean(x^2) + epsilon). delta is bf16 or f32 [T, H]. H must be a multiple of 16.
  void add_norm(Tensor out, Tensor residual, const Tensor* delta, const float* weight, float epsilon) const;

 private:
  ThreadPool& pool_;
  const Isa isa_;
};

// One row, `columns` wide; delta may be null. The table of an instruction set's versions.
struct NormRow {
  float* residual;
  const void* delta;
  DType delta_dtype;
  void* out;
  DType out_dtype;
  const float* weight;
  int64_t columns;
  float epsilon;
};
using NormKernel = void (*)(const NormRow&);

namespace reference {
void add_norm_row(const NormRow& row);
}
namespace avx2 {
void add_norm_row(const NormRow& row);
}
namespace avx512 {
void add_norm_row(const NormRow& row);
}
namespace avx512_bf16 {
void add_norm_row(const NormRow& row);
}

}  // namespace oarlock::cpu
