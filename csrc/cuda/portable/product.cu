// Products for 1 to 32 rows as a walk over the weights. Sixteen rows of the weight are the first operand of mma, the rows of x
// its columns. A thread copies the very sixteen bytes that it will multiply: in what order the columns of a row are summed is
// free as long as x is read alike, so eight columns side by side serve as the fragments of two products. Copies go to a ring
// that each thread has to itself, and nobody waits for anybody until the sums of a unit are added up.
//
// A unit of sixteen rows is shared by kGroups warps, which take its columns in turns of 64; their sums are added in order. So a
// result depends on that row of x, on n and on k alone.
#include "base/error.h"
#include "cuda/element.cuh"
#include "cuda/portable/copy.cuh"
#include "cuda/portable/portable.h"

namespace oarlock::cuda::portable {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * 32, kUnitRows = 16, kStepColumns = 64;
constexpr int kDepth = 4;           // steps of the ring
constexpr int kPieces = 4;          // of a step: rows 0 to 7 and 8 to 15 of 32 columns, twice
constexpr int64_t kFewRows = 8192;  // up to so many rows of a weight all warps share a unit
constexpr int kRingBytes = kWarps * kDepth * kPieces * 32 * 16;

struct ProductParams {
  void* out;
  const void *weights, *x;
  const float* bias;
  int64_t out_stride, x_stride;
  int rows, n, k, units;
  bool float_out, gate;
};

// Sums of a unit for the rows of x from 8 * tile on, as mma leaves them.
template <typename T>
__device__ __forceinline__ void write_out(const ProductParams& p, const float4& sum, int unit, int tile, int lane) {
  const int row = unit * kUnitRows + lane / 4;
  const bool lower_in = row < p.n, upper_in = row + 8 < p.n;
  const float lower_bias = p.bias && lower_in ? p.bias[row] : 0.f, upper_bias = p.bias && upper_in ? p.bias[row + 8] : 0.f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int x_row = tile * 8 + lane % 4 * 2 + i;
    const float lower = i == 0 ? sum.x : sum.y, upper = i == 0 ? sum.z : sum.w;
    if (x_row >= p.rows) continue;
    T* out = static_cast<T*>(p.out) + x_row * p.out_stride;
    float* float_out = static_cast<float*>(p.out) + x_row * p.out_stride;
    if (p.gate) {
      if (upper_in) out[unit * (kUnitRows / 2) + lane / 4] = from_float<T>(silu(lower) * upper);
    } else if (p.float_out) {
      if (lower_in) float_out[row] = lower + lower_bias;
      if (upper_in) float_out[row + 8] = upper + upper_bias;
    } else {
      if (lower_in) out[row] = from_float<T>(lower + lower_bias);
      if (upper_in) out[row + 8] = from_float<T>(upper + upper_bias);
    }
  }
}

template <typename T, int kTiles, int kGroups>
__global__ void __launch_bounds__(kThreads, 2) product_kernel(const ProductParams p) {
  constexpr int kSets = kWarps / kGroups;  // units at a time
  extern __shared__ __align__(16) uint8_t shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp % kGroups, set = warp / kGroups;
  uint4* ring = reinterpret_cast<uint4*>(shared) + warp * (kDepth * kPieces * 32) + lane;
  float4* sums = reinterpret_cast<float4*>(shared + kRingBytes);  // [warp][tile][lane]
  const int begin = int(int64_t(p.units) * blockIdx.x / gridDim.x), end = int(int64_t(p.units) * (blockIdx.x + 1) / gridDim.x);
  const int steps = p.k / kStepColumns, mine = (steps - group + kGroups - 1) / kGroups;  // of each unit

  // Where the next copy comes from: this warp's step number `step` of `unit`.
  int unit = begin + set, step = 0, slot = 0;
  auto load = [&] {
    if (unit < end && step < mine) {
      const int row = unit * kUnitRows + lane / 4;
      const int64_t column = (group + step * kGroups) * kStepColumns + lane % 4 * 8;
      // Rows beyond the last are read as the last, and nobody looks at what comes of them.
      const T* lower = static_cast<const T*>(p.weights) + int64_t(min(row, p.n - 1)) * p.k + column;
      const T* upper = static_cast<const T*>(p.weights) + int64_t(min(row + 8, p.n - 1)) * p.k + column;
      uint4* to = ring + slot * (kPieces * 32);
      copy16(to, lower);
      copy16(to + 32, upper);
      copy16(to + 64, lower + 32);
      copy16(to + 96, upper + 32);
      if (++step == mine) step = 0, unit += kSets;
    }
    commit_copies();
    slot = (slot + 1) % kDepth;
  };
#pragma unroll
  for (int s = 0; s < kDepth - 1; ++s) load();
  depend();
  release_successor();

  const T* x[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    x[tile] = static_cast<const T*>(p.x) + min(tile * 8 + lane / 4, p.rows - 1) * p.x_stride + lane % 4 * 8;
  }
  int turn = 0;
  for (int first = begin; first < end; first += kSets) {
    float acc[kTiles][4] = {};
    const int current = first + set;
    for (int s = 0; current < end && s < mine; ++s) {
      load();
      const int column = (group + s * kGroups) * kStepColumns;
      uint4 b[kTiles][2];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        b[tile][0] = *reinterpret_cast<const uint4*>(x[tile] + column);
        b[tile][1] = *reinterpret_cast<const uint4*>(x[tile] + column + 32);
      }
      wait_copies<kDepth - 1>();
      const uint4* from = ring + turn * (kPieces * 32);
      turn = (turn + 1) % kDepth;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 lower = from[half * 64], upper = from[half * 64 + 32];
        const uint32_t even[4] = {lower.x, upper.x, lower.y, upper.y}, odd[4] = {lower.z, upper.z, lower.w, upper.w};
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          mma<T>(acc[tile], even, b[tile][half].x, b[tile][half].y);
          mma<T>(acc[tile], odd, b[tile][half].z, b[tile][half].w);
        }
      }
    }
    __syncthreads();  // the sums of the units before have been read
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      sums[(warp * kTiles + tile) * 32 + lane] = make_float4(acc[tile][0], acc[tile][1], acc[tile][2], acc[tile][3]);
    }
    __syncthreads();
    for (int tile = group; tile < kTiles && current < end; tile += kGroups) {
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const float4 v = sums[((set * kGroups + g) * kTiles + tile) * 32 + lane];
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
      write_out<T>(p, sum, current, tile, lane);
    }
  }
}

template <typename T, int kTiles, int kGroups>
void go(cudaStream_t stream, const Device& device, const ProductParams& p) {
  static Occupancy occupancy;
  constexpr size_t kBytes = kRingBytes + size_t(kThreads) * kTiles * sizeof(float4);
  const int blocks = device.multiprocessors * occupancy.of(product_kernel<T, kTiles, kGroups>, device, kThreads, kBytes);
  const int most = (p.units + kWarps / kGroups - 1) / (kWarps / kGroups);
  launch(stream, product_kernel<T, kTiles, kGroups>, dim3(unsigned(std::min(blocks, most))), kThreads, kBytes, p);
}

template <typename T, int kTiles>
void by_weight(cudaStream_t stream, const Device& device, const ProductParams& p) {
  if (p.n <= kFewRows) return go<T, kTiles, kWarps>(stream, device, p);
  go<T, kTiles, kWarps / 2>(stream, device, p);
}

template <typename T>
void by_rows(cudaStream_t stream, const Device& device, const ProductParams& p) {
  if (p.rows <= 8) return by_weight<T, 1>(stream, device, p);
  if (p.rows <= 16) return by_weight<T, 2>(stream, device, p);
  by_weight<T, 4>(stream, device, p);
}

}  // namespace

void stream_product(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                    const float* bias, After after) {
  require(x.rows >= 1 && x.rows <= kStreamMaxRows, "a streamed product takes 1 to ", kStreamMaxRows, " rows, not ", x.rows);
  require(streams(weight), "a streamed product takes a multiple of ", kStepColumns, " columns, not ", weight.k);
  ProductParams p = {};
  p.out = out.data;
  p.weights = weight.data;
  p.x = x.data;
  p.bias = bias;
  p.out_stride = out.stride;
  p.x_stride = x.stride;
  p.rows = int(x.rows);
  p.n = int(weight.n);
  p.k = int(weight.k);
  p.units = int((weight.n + kUnitRows - 1) / kUnitRows);
  p.float_out = out.dtype == DType::f32;
  p.gate = after == After::gate;
  if (x.dtype == DType::bf16) return by_rows<__nv_bfloat16>(stream, device, p);
  by_rows<__half>(stream, device, p);
}

}  // namespace oarlock::cuda::portable
