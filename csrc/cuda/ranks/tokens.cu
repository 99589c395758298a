// A candidate is a token and its logit as one number that orders like the logits, then by lowest id: the largest wins. Slices
// of a row are looked at by several blocks; the last one to end sends the row's candidate to every peer and waits for theirs.
#include "base/error.h"
#include "cuda/device.h"
#include "cuda/ptx.cuh"
#include "cuda/ranks/tokens.h"
#include "cuda/ranks/wait.cuh"
#include "cuda/sampler_row.cuh"

namespace oarlock::cuda {
namespace {

constexpr int kSlices = 8, kThreads = 512;
constexpr uint64_t kEmptyCandidate = uint64_t(kEmpty) << 32 | kEmpty;
constexpr uint64_t kPoison = ~uint64_t(0), kNothing = 1;  // NaN or +inf; nothing above -inf

__device__ __forceinline__ uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

__device__ __forceinline__ uint64_t largest_of_warp(uint64_t x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = larger(x, __shfl_xor_sync(~0u, x, d));
  return x;
}

// The best of [begin, end) of a row, in every thread of the first warp.
__device__ uint64_t best_of(const float* row, int begin, int end, int first) {
  __shared__ uint64_t bests[kThreads / 32];
  uint64_t best = kNothing;
  auto look_at = [&](float x, int column) {
    const uint64_t mine = !(x < INFINITY)  ? kPoison
                          : x == -INFINITY ? kNothing
                                           : uint64_t(key_of(x)) << 32 | uint32_t(~(first + column));
    best = larger(best, mine);
  };
  const int whole = (reinterpret_cast<uintptr_t>(row) | uintptr_t(begin * 4)) % 16 == 0 ? begin + (end - begin) / 4 * 4 : begin;
#pragma unroll 4
  for (int c = begin + int(threadIdx.x) * 4; c < whole; c += kThreads * 4) {
    const float4 x = *reinterpret_cast<const float4*>(row + c);
    look_at(x.x, c), look_at(x.y, c + 1), look_at(x.z, c + 2), look_at(x.w, c + 3);
  }
  for (int c = whole + int(threadIdx.x); c < end; c += kThreads) look_at(row[c], c);
  best = largest_of_warp(best);
  if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
  __syncthreads();
  return largest_of_warp(threadIdx.x % 32 < kThreads / 32 ? bests[threadIdx.x % 32] : 0);
}

// The row's best in every thread of the first warp of the last block of the row; 0 in all others.
__device__ uint64_t best_of_row(const float* part, int64_t stride, int cols, int first, const Contest& contest) {
  const int row = int(blockIdx.y), slice = (cols / kSlices + 4) / 4 * 4;
  const int begin = min(int(blockIdx.x) * slice, cols), end = min(begin + slice, cols);
  const uint64_t best = best_of(part + row * stride, begin, end, first);
  if (threadIdx.x >= 32) return 0;
  uint64_t found = 0;
  if (threadIdx.x == 0) {
    atomicMax(reinterpret_cast<unsigned long long*>(contest.best + row), static_cast<unsigned long long>(best));
    __threadfence();
    if (atomicAdd(contest.arrived + row, 1u) == kSlices - 1) {
      __threadfence();
      found = atomicExch(reinterpret_cast<unsigned long long*>(contest.best + row), 0ull);
      contest.arrived[row] = 0;
    }
  }
  return __shfl_sync(~0u, found, 0);
}

__device__ __forceinline__ void report(const Sampled& sampled, int row, uint64_t best) {
  const bool drawn = best != kPoison && best != kNothing;
  sampled.token[row] = drawn ? int32_t(~uint32_t(best)) : 0;
  sampled.logprob[row] = 0;
  sampled.status[row] = drawn ? 0 : 1;
}

__global__ void __launch_bounds__(kThreads)
    choose_kernel(const float* part, int64_t stride, int cols, int first, const Contest contest, const Sampled sampled,
                  const __grid_constant__ Channel channel) {
  release_successor();
  depend();
  const uint32_t round = round_of(channel), used = used_before(channel, round), rows = gridDim.y;
  const uint64_t mine = best_of_row(part, stride, cols, first, contest);
  if (threadIdx.x >= 32) return;
  if (threadIdx.x == 0) end_round(channel, round, gridDim.x * gridDim.y, rows);
  if (mine == 0) return;
  const int row = int(blockIdx.y), peer = int(threadIdx.x) + int(int(threadIdx.x) >= channel.rank);
  uint64_t best = mine;
  if (peer < channel.world) {
    send(reinterpret_cast<uint64_t*>(channel.at(peer, round)) + row, mine);
    auto* before = reinterpret_cast<uint64_t*>(channel.from(peer, round + 2));
    for (uint32_t r = uint32_t(row); r < used; r += rows) before[r] = kEmptyCandidate;
    const uint64_t* from = reinterpret_cast<const uint64_t*>(channel.from(peer, round)) + row;
    Wait wait(channel);
    uint64_t theirs = look(from);
    while (theirs == kEmptyCandidate && !wait.is_over(peer)) theirs = look(from);
    best = larger(best, theirs == kEmptyCandidate ? kPoison : theirs);
  }
  best = largest_of_warp(best);
  if (threadIdx.x == 0) report(sampled, row, best);
}

__global__ void __launch_bounds__(kThreads)
    find_kernel(const float* part, int64_t stride, int cols, int first, const Contest contest, uint64_t* candidates) {
  release_successor();
  depend();
  const uint64_t best = best_of_row(part, stride, cols, first, contest);
  if (threadIdx.x == 0 && best != 0) candidates[blockIdx.y] = best;
}

__global__ void choose_among_kernel(const uint64_t* candidates, int world, int rows, const Sampled sampled) {
  release_successor();
  depend();
  const int row = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= rows) return;
  uint64_t best = 0;
  for (int r = 0; r < world; ++r) best = larger(best, candidates[int64_t(r) * rows + row]);
  report(sampled, row, best);
}

__device__ __forceinline__ void place_row(float* to, const float* from, int cols) {
  const int step = int(gridDim.x * blockDim.x), at = int(blockIdx.x * blockDim.x + threadIdx.x);
  const bool aligned = (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16 == 0;
  const int whole = aligned ? cols / 4 : 0;
  for (int i = at; i < whole; i += step) reinterpret_cast<float4*>(to)[i] = reinterpret_cast<const float4*>(from)[i];
  for (int i = whole * 4 + at; i < cols; i += step) to[i] = from[i];
}

__global__ void place_kernel(float* whole, int64_t whole_stride, const float* part, int64_t stride, int cols) {
  release_successor();
  depend();
  place_row(whole + blockIdx.y * whole_stride, part + blockIdx.y * stride, cols);
}

// place_kernel into rank 0's memory, and the flag behind it.
__global__ void put_kernel(float* whole, int64_t whole_stride, const float* part, int64_t stride, int cols, uint32_t* flag,
                           const __grid_constant__ Channel channel) {
  release_successor();
  depend();
  place_row(whole + blockIdx.y * whole_stride, part + blockIdx.y * stride, cols);
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (atomicAdd(&channel.rounds->arrived, 1u) != gridDim.x * gridDim.y - 1) return;
  __threadfence_system();
  channel.rounds->arrived = 0;
  send_last(flag, ++channel.rounds->number);
}

__global__ void await_kernel(const uint32_t* flags, const __grid_constant__ Channel channel) {
  release_successor();
  depend();
  const int peer = int(threadIdx.x) + 1;  // of rank 0
  const uint32_t round = round_of(channel) + 1;
  if (peer < channel.world) {
    Wait wait(channel);
    while (look_first(flags + peer) != round && !wait.is_over(peer)) {
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) channel.rounds->number = round;
}

__global__ void share_kernel(int32_t* tokens, int rows, const __grid_constant__ Channel channel) {
  release_successor();
  depend();
  const uint32_t round = round_of(channel), used = used_before(channel, round);
  __syncthreads();
  if (threadIdx.x == 0) end_round(channel, round, 1, uint32_t(rows));
  if (channel.rank == 0) {
    for (int row = int(threadIdx.x); row < rows; row += int(blockDim.x))
      for (int peer = 1; peer < channel.world; ++peer)
        send(reinterpret_cast<uint32_t*>(channel.at(peer, round)) + row, uint32_t(tokens[row]));
    return;
  }
  auto* before = reinterpret_cast<uint32_t*>(channel.from(0, round + 2));
  for (uint32_t row = threadIdx.x; row < used; row += blockDim.x) before[row] = kEmpty;
  Wait wait(channel);
  for (int row = int(threadIdx.x); row < rows; row += int(blockDim.x)) {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(channel.from(0, round)) + row;
    uint32_t token = look(from);
    while (token == kEmpty && !wait.is_over(0)) token = look(from);
    tokens[row] = token == kEmpty ? 0 : int32_t(token);
  }
}

dim3 place_grid(const Tensor& part) { return dim3(unsigned((part.cols / 4 + 255) / 256 + 7) / 8, unsigned(part.rows)); }

}  // namespace

void choose_likeliest(cudaStream_t stream, const Channel& channel, const Contest& contest, Tensor part, int first,
                      const Sampled& sampled) {
  require(part.rows * 8 <= channel.part_bytes, "ranks can't choose ", part.rows, " tokens at once");
  launch(stream, choose_kernel, dim3(kSlices, unsigned(part.rows)), kThreads, 0, part.as<float>(), part.stride, int(part.cols),
         first, contest, sampled, channel);
}

void find_candidates(cudaStream_t stream, const Contest& contest, Tensor part, int first, uint64_t* candidates) {
  launch(stream, find_kernel, dim3(kSlices, unsigned(part.rows)), kThreads, 0, part.as<float>(), part.stride, int(part.cols),
         first, contest, candidates);
}

void choose_candidates(cudaStream_t stream, const uint64_t* candidates, int world, int rows, const Sampled& sampled) {
  launch(stream, choose_among_kernel, dim3(unsigned(rows + 127) / 128), 128, 0, candidates, world, rows, sampled);
}

void place_logits(cudaStream_t stream, float* whole, int64_t stride, Tensor part, int first) {
  launch(stream, place_kernel, place_grid(part), 256, 0, whole + first, stride, part.as<float>(), part.stride, int(part.cols));
}

void put_logits(cudaStream_t stream, const Gathering& g, Tensor part, int first) {
  launch(stream, put_kernel, place_grid(part), 256, 0, g.whole + first, g.stride, part.as<float>(), part.stride, int(part.cols),
         g.flags + g.channel.rank, g.channel);
}

void await_logits(cudaStream_t stream, const Gathering& g) { launch(stream, await_kernel, dim3(1), 32, 0, g.flags, g.channel); }

void share_tokens(cudaStream_t stream, const Channel& channel, int32_t* tokens, int rows) {
  require(rows * 4 <= channel.part_bytes, "ranks can't share ", rows, " tokens at once");
  launch(stream, share_kernel, dim3(1), 256, 0, tokens, rows, channel);
}

}  // namespace oarlock::cuda
