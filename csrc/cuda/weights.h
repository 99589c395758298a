// Weights on the device: row-major [n, k] in the compute dtype, as both the streaming kernel and cuBLAS read them.
#pragma once

#include "base/ops.h"
#include "cuda/stream.h"

namespace oarlock::cuda {

struct CudaWeight : Weight {
  void* data = nullptr;
  StreamWeight stream;
  bool gated = false;  // rows alternate, eight of the gate and eight of the up projection
};

// Converts rows of a piece to `dtype` (bf16 or f16) in host memory: rows [first, first + count) to `to`, contiguous.
void convert_rows(void* to, DType dtype, const WeightPiece& piece, int64_t first, int64_t count);

// Fills [n, k] elements with pseudo-random values in +-limit.
void fill_random(cudaStream_t stream, void* data, DType dtype, int64_t count, float limit, uint64_t seed);

}  // namespace oarlock::cuda
