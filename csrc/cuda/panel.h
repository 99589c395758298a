// The product for more than 64 rows: panels of 128 rows of x times panels of the weight.
#pragma once

#include <cuda_runtime.h>

#include "base/ops.h"
#include "cuda/device.h"
#include "cuda/stream.h"

namespace oarlock::cuda {

constexpr int kPanelRows = 128;  // of x

// How a product is cut. At most one of the last two is more than 1; it is the size of a cluster of blocks.
struct PanelPlan {
  int width = 0;         // rows of the weight in a panel
  int splits = 1;        // 1, 2 or 4 blocks that share a pair of panels, each with a part of the columns, and add their sums up
  int share_weight = 1;  // 1 or 2 blocks with neighbouring panels of x, which load a panel of the weight together
};

// The widths there are: before a gate, without one, and where columns are split.
constexpr int kGatedWidths[] = {224, 256, 192, 128, 112, 96}, kStoredWidths[] = {128, 96, 64}, kSplitWidth = 64;

// Whether the kernel takes the weight: its columns come in groups of 64 and its rows in groups of 8.
inline bool takes_panels(const StreamWeight& weight) { return weight.k % 64 == 0 && weight.n % 8 == 0; }

// The plan that should be quickest; width 0 where cuBLASLt should be quicker.
PanelPlan choose_panel_plan(const Device& device, const StreamWeight& weight, int64_t rows, After after, bool with_bias);

// out's rows begin at multiples of 16 bytes.
void panel_product(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                   const float* bias, After after, const PanelPlan& plan);

}  // namespace oarlock::cuda
