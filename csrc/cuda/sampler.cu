// Sampling on Hopper: a cluster of eight blocks works on one row, each on a slice that is read once and stays in shared memory,
// where it is edited, so the raw logits remain for the log-probabilities. What the blocks must agree on goes through
// distributed shared memory.
#include <cooperative_groups.h>

#include "base/error.h"
#include "cuda/sampler.cuh"
#include "cuda/sampler.h"

namespace oarlock::cuda {
namespace {

using namespace sampler;

struct ClusterTeam {
  static constexpr int kBlocks = 8, kThreads = 512;
  cooperative_groups::cluster_group cluster;
  Shared& shared;
  __device__ explicit ClusterTeam(Shared& shared) : cluster(cooperative_groups::this_cluster()), shared(shared) {}
  __device__ int rank() const { return int(cluster.block_rank()); }
  __device__ void sync() { cluster.sync(); }
  __device__ const Shared* peer(int block) { return cluster.map_shared_rank(&shared, block); }
};
constexpr int kBlocks = ClusterTeam::kBlocks, kThreads = ClusterTeam::kThreads;

// A multiple of 32, so that a word of the mask belongs to one block.
__host__ __device__ __forceinline__ int slice_length(int vocab) { return ((vocab + kBlocks - 1) / kBlocks + 31) / 32 * 32; }

__global__ void __launch_bounds__(kThreads)
    sample_kernel(const float* logits, int64_t stride, int vocab, const Sampling sampling, const Sampled sampled) {
  __shared__ Shared shared;
  extern __shared__ float values[];
  Context context(ClusterTeam(shared), shared);
  release_successor();
  depend();
  const int row_index = blockIdx.x / kBlocks, share = slice_length(vocab), begin = min(context.team.rank() * share, vocab);
  const Slice slice = {values - begin, begin, min(begin + share, vocab)};
  sample_row(context, slice, logits + row_index * stride, stride, row_index, row_settings(sampling, row_index, vocab), sampling,
             sampled);
  context.team.sync();  // nobody leaves while others read its shared memory
}

}  // namespace

void sample(cudaStream_t stream, const Device&, float* /* scratch */, Tensor logits, const Sampling& sampling,
            const Sampled& sampled) {
  constexpr size_t kMost = 190 << 10;
  const size_t bytes = size_t(slice_length(int(logits.cols))) * sizeof(float);
  require(bytes <= kMost, "a vocabulary of ", logits.cols, " is larger than ", kMost / 4 * kBlocks);
  static const bool allowed = (allow_shared(sample_kernel, kMost), true);
  (void)allowed;
  launch_clusters(stream, sample_kernel, dim3(unsigned(logits.rows) * kBlocks), kBlocks, kThreads, bytes, logits.as<float>(),
                  logits.stride, int(logits.cols), sampling, sampled);
}

}  // namespace oarlock::cuda
