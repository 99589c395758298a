// Log-probabilities and the next token of each row of logits.
#pragma once

#include <cuda_runtime.h>

#include "base/ops.h"
#include "cuda/device.h"

namespace oarlock::cuda {

// The semantics are those of Sampling and Sampled (base/ops.h) as the CPU sampler refines them: a null array means its neutral
// value for every row, temperatures under 1e-5 count as 0, +inf counts as NaN, ids outside the vocabulary are ignored, unused
// places of top_ids are -1 with log-probability -inf. The draw is the CPU's: u from Philox4x32-10 (key seed, counter draw), and
// the token is the first in order of id, among those that the filters keep, at which the running sum of weights exceeds u
// times their total. Weights are held in fixed point, so sums do not depend on their order.
void sample(cudaStream_t stream, const Device& device, float* scratch, Tensor logits, const Sampling& sampling,
            const Sampled& sampled);

}  // namespace oarlock::cuda
