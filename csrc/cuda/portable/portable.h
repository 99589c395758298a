// Kernels for compute capability 8.x, and for tests on newer cards: matrix products by mma.sync, copies to shared memory by
// cp.async, one kernel after the other. Each does what the one of its name in the folder above does (stream.h, attention.h,
// sampler.h), with the same promises.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "base/ops.h"
#include "cuda/attention.h"
#include "cuda/device.h"
#include "cuda/stream.h"

namespace oarlock::cuda::portable {

// Whether this build has machine code (or code that the driver can compile) for the device that is selected.
bool built_for_this_device();

void stream_product(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                    const float* bias, After after);

void attend_shared(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor qkv,
                   const AttentionShape& shape, KvLayer cache, const Batch& batch);
void attend_decode(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor out, Tensor qkv,
                   const AttentionShape& shape, KvLayer cache, const Batch& batch, bool batch_invariant);
void attend_each(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor out, Tensor qkv,
                 const AttentionShape& shape, KvLayer cache, const Batch& batch);
void attend_prefill(cudaStream_t stream, const Device& device, Tensor out, Tensor qkv, const AttentionShape& shape,
                    KvLayer cache, const Batch& batch);

// scratch: a row of the vocabulary for each multiprocessor, where rows with penalties, bias or a mask are edited.
void sample(cudaStream_t stream, const Device& device, float* scratch, Tensor logits, const Sampling& sampling,
            const Sampled& sampled);
size_t sampler_scratch(const Device& device, int64_t vocab);

// How many blocks of a kernel a multiprocessor holds; its grid is that many times the multiprocessors. Looked up when the
// need for shared memory changes.
struct Occupancy {
  size_t bytes = 0;
  int blocks = 0;

  template <typename Kernel>
  int of(Kernel kernel, const Device& device, int threads, size_t wanted) {
    if (blocks > 0 && wanted == bytes) return blocks;
    require(wanted <= device.shared_per_block, "a kernel needs ", wanted, " bytes of shared memory, and a block has ",
            device.shared_per_block);
    if (wanted > bytes) allow_shared(kernel, wanted);
    bytes = std::max(bytes, wanted);
    OARLOCK_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, wanted));
    return blocks = std::max(blocks, 1);
  }
};

}  // namespace oarlock::cuda::portable
