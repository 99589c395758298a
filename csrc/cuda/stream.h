// The weight-streaming product, for few rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "base/ops.h"
#include "cuda/device.h"
#include "cuda/ranks/channel.h"

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
// The product of a rank's share of the columns, which the kernel sends to the other ranks as it writes it (Kernels::share).
void stream_share(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                  const Channel& channel);

// Any number of rows, kStreamMaxRows at a time, by stream_product or another card's version of it.
inline void stream_products(decltype(&stream_product) product, cudaStream_t stream, const Device& device,
                            const StreamWeight& weight, Tensor out, Tensor x, const float* bias, After after) {
  auto rows_of = [](Tensor tensor, int64_t first, int64_t count) {
    tensor.data = tensor.as<uint8_t>() + first * tensor.stride * size_of(tensor.dtype);
    tensor.rows = count;
    return tensor;
  };
  for (int64_t first = 0; first < x.rows; first += kStreamMaxRows) {
    const int64_t count = x.rows - first < kStreamMaxRows ? x.rows - first : kStreamMaxRows;
    product(stream, device, weight, rows_of(out, first, count), rows_of(x, first, count), bias, after);
  }
}

}  // namespace oarlock::cuda
