// The kernels that differ between cards, as tables of which a device takes one when it is opened: those written for Hopper
// (wgmma, bulk copies, clusters), and the portable ones (mma.sync, cp.async) for what came before it. Everything else is
// compiled for both from one source.
#pragma once

#include <cuda_runtime.h>

#include "base/ops.h"
#include "cuda/attention.h"
#include "cuda/device.h"
#include "cuda/ranks/channel.h"
#include "cuda/stream.h"

namespace oarlock::cuda {

struct Kernels {
  const char* name;
  // out = x w^T as `after` says, in whatever kernel suits the shape; false where cuBLASLt is to do it. batch_invariant: a row's
  // result depends on that row alone.
  bool (*product)(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                  const float* bias, After after, bool batch_invariant);
  // product without a bias into float32, whose result goes to every peer's part of the channel's next round as well, as
  // sum_shares (ranks/sums.h) takes it; false where there is no kernel for the shape.
  bool (*share)(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                const Channel& channel);
  // As attention.h says of each.
  decltype(&cuda::attend_shared) attend_shared;
  decltype(&cuda::attend_decode) attend_decode;
  decltype(&cuda::attend_each) attend_each;
  decltype(&cuda::attend_prefill) attend_prefill;
  // As sampler.h says. scratch: sampler_scratch bytes for a vocabulary, which calls on one stream share.
  void (*sample)(cudaStream_t stream, const Device& device, float* scratch, Tensor logits, const Sampling& sampling,
                 const Sampled& sampled);
  size_t (*sampler_scratch)(const Device& device, int64_t vocab);
};

extern const Kernels kPortableKernels;
#ifdef OARLOCK_CUDA_HOPPER
extern const Kernels kHopperKernels;
#endif

}  // namespace oarlock::cuda
