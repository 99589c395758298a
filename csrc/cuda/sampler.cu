// Sampling on Hopper: a cluster of eight blocks works on one row, each on a slice that is read once and stays in shared memory,
// where it is edited, so the raw logits remain for the log-probabilities. What the blocks must agree on goes through
// distributed shared memory. Rows of which only the best is wanted need no such room, and have a kernel of their own.
#include <cooperative_groups.h>

#include <algorithm>

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

// Rows of which only the best is wanted, each by a cluster of `parts` blocks. What is wanted is part of the plan, so it is
// looked at before the logits are there.
__global__ void __launch_bounds__(kThreads)
    best_kernel(const float* logits, int64_t stride, int vocab, int parts, const Sampling sampling, const Sampled sampled) {
  __shared__ uint64_t warp_values[kThreads / 32], found;
  release_successor();
  const int row_index = blockIdx.x / parts, rank = blockIdx.x % parts;
  const bool mine = row_settings(sampling, row_index, vocab).only_best();
  depend();
  if (!mine) return;
  const int share = ((vocab + parts - 1) / parts + 3) / 4 * 4, begin = min(rank * share, vocab),
            end = min(begin + share, vocab);
  uint64_t best = best_in_passing<kThreads>(logits + row_index * stride, begin, end, stride % 4 == 0);
#pragma unroll
  for (int d = 16; d > 0; d /= 2) best = Max()(best, __shfl_xor_sync(~0u, best, d));
  if (threadIdx.x % 32 == 0) warp_values[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / 32; ++w) best = Max()(best, warp_values[w]);
    found = best;
  }
  cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
  cluster.sync();
  if (rank == 0 && threadIdx.x == 0) {
    for (int b = 1; b < parts; ++b) best = Max()(best, *cluster.map_shared_rank(&found, b));
    write_best(sampled, row_index, best);
  }
  cluster.sync();  // nobody leaves while others read its shared memory
}

// The other rows.
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const float* logits, int64_t stride, int vocab, int rows, const Sampling sampling, const Sampled sampled) {
  __shared__ Shared shared;
  extern __shared__ float values[];
  Context context(ClusterTeam(shared), shared);
  release_successor();
  const int first = blockIdx.x / kBlocks, step = gridDim.x / kBlocks;
  bool any = false;
  for (int row = first; row < rows; row += step) any |= !row_settings(sampling, row, vocab).only_best();
  depend();
  if (!any) return;
  const int share = slice_length(vocab), begin = min(context.team.rank() * share, vocab);
  const Slice slice = {values - begin, begin, min(begin + share, vocab)};
  for (int row = first; row < rows; row += step) {
    const RowSettings settings = row_settings(sampling, row, vocab);
    if (settings.only_best()) continue;
    sample_row(context, slice, logits + row * stride, stride, row, settings, sampling, sampled);
    context.team.sync();  // nobody goes on, or leaves, while others read its shared memory
  }
}

}  // namespace

void sample(cudaStream_t stream, const Device& device, float* /* scratch */, Tensor logits, const Sampling& sampling,
            const Sampled& sampled) {
  constexpr size_t kMost = 190 << 10;
  const size_t bytes = size_t(slice_length(int(logits.cols))) * sizeof(float);
  require(bytes <= kMost, "a vocabulary of ", logits.cols, " is larger than ", kMost / 4 * kBlocks);
  static const bool allowed = (allow_shared(sample_kernel, kMost), true);
  (void)allowed;
  const int rows = int(logits.rows), vocab = int(logits.cols);
  int parts = kBlocks;
  while (parts > 1 && parts * rows > 4 * device.multiprocessors) parts /= 2;
  launch_clusters(stream, best_kernel, dim3(unsigned(rows * parts)), parts, kThreads, 0, logits.as<float>(), logits.stride,
                  vocab, parts, sampling, sampled);
  // About two blocks of these find room on a multiprocessor.
  const int clusters = std::min(rows, 2 * device.multiprocessors / kBlocks);
  launch_clusters(stream, sample_kernel, dim3(unsigned(clusters * kBlocks)), kBlocks, kThreads, bytes, logits.as<float>(),
                  logits.stride, vocab, rows, sampling, sampled);
}

}  // namespace oarlock::cuda
