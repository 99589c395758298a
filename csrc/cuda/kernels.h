// The kernels that differ between cards, as a table that a device takes when it is opened.
#pragma once

#include <cuda_runtime.h>

#include "base/ops.h"
#include "cuda/attention.h"
#include "cuda/device.h"
#include "cuda/stream.h"

namespace oarlock::cuda {

struct Kernels {
  const char* name;
  // out = x w^T as `after` says, in whatever kernel suits the shape; false where cuBLASLt is to do it. batch_invariant: a row's
  // result depends on that row alone.
  bool (*product)(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                  const float* bias, After after, bool batch_invariant);
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

extern const Kernels kHopperKernels;

}  // namespace oarlock::cuda
