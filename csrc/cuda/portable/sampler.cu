// Sampling by one block a row. A row is read where it lies, once for each question about it; where it is edited, it is copied
// to the block's own scratch row first, so that the raw logits remain for the log-probabilities.
#include "base/error.h"
#include "cuda/portable/portable.h"
#include "cuda/sampler.cuh"

namespace oarlock::cuda::portable {
namespace {

using namespace sampler;

struct BlockTeam {
  static constexpr int kBlocks = 1, kThreads = 1024;
  Shared& shared;
  __device__ int rank() const { return 0; }
  __device__ void sync() { __syncthreads(); }
  __device__ const Shared* peer(int) { return &shared; }
};

__global__ void __launch_bounds__(BlockTeam::kThreads, 1)
    sample_kernel(float* logits, int64_t stride, int rows, int vocab, float* scratch, const Sampling sampling,
                  const Sampled sampled) {
  __shared__ Shared shared;
  Context context(BlockTeam{shared}, shared);
  depend();
  release_successor();
  for (int row_index = blockIdx.x; row_index < rows; row_index += gridDim.x) {
    const RowSettings row = row_settings(sampling, row_index, vocab);
    float* raw = logits + row_index * stride;
    const Slice slice = {row.edits_logits() ? scratch + int64_t(blockIdx.x) * vocab : raw, 0, vocab};
    sample_row(context, slice, raw, stride, row_index, row, sampling, sampled);
    __syncthreads();
  }
}

}  // namespace

size_t sampler_scratch(const Device& device, int64_t vocab) {
  return size_t(device.multiprocessors) * size_t(vocab) * sizeof(float);
}

void sample(cudaStream_t stream, const Device& device, float* scratch, Tensor logits, const Sampling& sampling,
            const Sampled& sampled) {
  const unsigned blocks = unsigned(std::min<int64_t>(logits.rows, device.multiprocessors));
  launch(stream, sample_kernel, dim3(blocks), BlockTeam::kThreads, 0, logits.as<float>(), logits.stride, int(logits.rows),
         int(logits.cols), scratch, sampling, sampled);
}

}  // namespace oarlock::cuda::portable
