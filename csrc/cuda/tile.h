// The product for 33 to 64 rows: weights stream through as in stream.h, but tiles are high, so that x is read less often.
#pragma once

#include <cuda_runtime.h>

#include "base/ops.h"
#include "cuda/device.h"
#include "cuda/stream.h"

namespace oarlock::cuda {

constexpr int kTileMaxRows = 64;

// How a product is cut.
struct TilePlan {
  int tile_rows = 0;  // of the weight, 65 to 256, a multiple of 8, or of 16 before a gate
  int splits = 1;     // of the columns: 1, 2 or 4; more than 1 only where every block has one tile
};

// The plan that should be quickest.
TilePlan choose_tile_plan(const Device& device, const StreamWeight& weight, After after);

void tile_product(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                  const float* bias, After after, const TilePlan& plan);

}  // namespace oarlock::cuda
