// The table of Hopper's kernels, and which of its products suits which shape.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/panel.h"
#include "cuda/portable/portable.h"
#include "cuda/sampler.h"
#include "cuda/tile.h"

namespace oarlock::cuda {
namespace {

bool product(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x, const float* bias,
             After after, bool batch_invariant) {
  if (!streams(weight)) return false;
  if (batch_invariant || x.rows <= kStreamMaxRows) {
    stream_products(stream_product, stream, device, weight, out, x, bias, after);
    return true;
  }
  if (x.rows <= kTileMaxRows) {
    tile_product(stream, device, weight, out, x, bias, after, choose_tile_plan(device, weight, after));
    return true;
  }
  const PanelPlan plan = choose_panel_plan(device, weight, x.rows, after, bias != nullptr);
  if (plan.width == 0) return false;
  panel_product(stream, device, weight, out, x, bias, after, plan);
  return true;
}

bool share(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
           const Channel& channel) {
  if (!streams(weight) || x.rows > kStreamMaxRows) return false;
  stream_share(stream, device, weight, out, x, channel);
  return true;
}

// A cluster for each row is quickest while there are few; then a block each, which need not wait for others.
constexpr int kClusterRows = 32;

void sample_rows(cudaStream_t stream, const Device& device, float* scratch, Tensor logits, const Sampling& sampling,
                 const Sampled& sampled) {
  (logits.rows <= kClusterRows ? sample : portable::sample)(stream, device, scratch, logits, sampling, sampled);
}

}  // namespace

const Kernels kHopperKernels = {"hopper",       product,       share,
                                attend_shared,  attend_decode, attend_each,
                                attend_prefill, sample_rows,   portable::sampler_scratch};

}  // namespace oarlock::cuda
