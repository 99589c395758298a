// The weight-streaming product, for few rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/ops.h"
#include "cuda/device.h"

namespace oarlock::cuda {

// What follows a product.
enum class After : int {
  store,  // out = x w^T + bias
  gate,   // rows of w alternate, eight of the gate and eight of the up projection; out = silu(gate) * up
};

struct StreamWeight {
  const void* data = nullptr;
  DType dtype = DType::bf16;
  int64_t n = 0, k = 0;
};

// Up to so many rows, a row's result does not depend on how many there are.
constexpr int kStreamMaxRows = 32;
// Whether the kernel takes the weight: its columns come in groups of 64.
inline bool streams(const StreamWeight& weight) { return weight.k % 64 == 0; }

void stream_product(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                    const float* bias, After after);

}  // namespace oarlock::cuda
