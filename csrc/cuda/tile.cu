// Products for 33 to 64 rows. Here the rows of x, which every tile of the weight needs, are as many as the tile's own: reading
// them costs room in shared memory and bandwidth of L2. So a tile has up to 256 rows of the weight; where that leaves fewer
// tiles than multiprocessors, the columns are split among the blocks of a cluster, which add their sums up through distributed
// shared memory, in order.
//
// Weights and x have rings of their own, kept full by a warp each: what comes from memory must be asked for long before, what
// comes from L2 need not take that room. Each of kGroups warpgroups multiplies 64 rows of the tile (see stream.cu for the
// operands). The weights do not depend on the kernels before this one, so their ring fills while those still run.
#include <algorithm>
#include <map>
#include <utility>

#include "base/error.h"
#include "cuda/element.cuh"
#include "cuda/ptx.cuh"
#include "cuda/tile.h"
#include "cuda/wgmma.cuh"

namespace oarlock::cuda {
namespace {

constexpr int kBoxColumns = 64;  // 128 bytes, the swizzle's row
constexpr int kMostStages = 16;
constexpr int kRingBytes = 224 << 10;  // both

struct TileParams {
  void* out;
  const float* bias;
  int64_t out_stride;
  int rows, n;
  int tile_rows, tiles;  // of the weight
  int boxes;             // of 64 columns
  int splits, stages;    // blocks that share a tile, each with a part of the columns; of the weights' ring
  bool float_out, gate;
};

// Two elements of x's row `x_row`, at rows `row` and `row` + 8 of the weight.
template <typename T>
__device__ __forceinline__ void write_pair(const TileParams& p, int x_row, int row, int end_row, float lower, float upper) {
  if (x_row >= p.rows) return;
  const int64_t at = x_row * p.out_stride;
  const bool lower_in = row < end_row, upper_in = row + 8 < end_row;
  if (p.gate) {
    if (upper_in) static_cast<T*>(p.out)[at + row / 16 * 8 + row % 8] = from_float<T>(silu(lower) * upper);
    return;
  }
  if (p.bias != nullptr) {
    if (lower_in) lower += p.bias[row];
    if (upper_in) upper += p.bias[row + 8];
  }
  if (p.float_out) {
    if (lower_in) static_cast<float*>(p.out)[at + row] = lower;
    if (upper_in) static_cast<float*>(p.out)[at + row + 8] = upper;
  } else {
    if (lower_in) static_cast<T*>(p.out)[at + row] = from_float<T>(lower);
    if (upper_in) static_cast<T*>(p.out)[at + row + 8] = from_float<T>(upper);
  }
}

// A place in a ring and the parity of the turn that it is in.
struct Place {
  int stage = 0, turn = 0;
  __device__ void advance(int stages) {
    if (++stage == stages) stage = 0, turn ^= 1;
  }
};

constexpr int kRowStages = 6;  // a stage of x is asked for about two microseconds before it is needed

template <typename T, int N, int kGroups>
__global__ void __launch_bounds__(kGroups * 128 + 64, 1)
    tile_kernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap rows, const TileParams p) {
  constexpr int kThreads = kGroups * 128, kRowBytes = N * 128;
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t weights_full[kMostStages], weights_empty[kMostStages], rows_full[kRowStages], rows_empty[kRowStages];
  uint8_t* row_ring = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared) + 1023) & ~uintptr_t(1023));
  uint8_t* ring = row_ring + kRowStages * kRowBytes;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int split = int(blockIdx.x) % p.splits, first_tile = int(blockIdx.x) / p.splits;
  const int tile_step = int(gridDim.x) / p.splits;
  const int first_box = p.boxes * split / p.splits, end_box = p.boxes * (split + 1) / p.splits;
  const int weight_bytes = p.tile_rows * 128;

  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int s = 0; s < p.stages; ++s) barrier_init(&weights_full[s], 1), barrier_init(&weights_empty[s], kGroups * 4);
#pragma unroll 1
    for (int s = 0; s < kRowStages; ++s) barrier_init(&rows_full[s], 1), barrier_init(&rows_empty[s], kGroups * 4);
    barrier_init_fence();
  }
  __syncthreads();
  release_successor();

  if (warp >= kGroups * 4) {
    if (warp == kGroups * 4 && lane == 0) {
      const uint64_t once = policy_evict_first();
      Place at{0, 1};  // a fresh ring is empty: the first waits pass
      for (int tile = first_tile; tile < p.tiles; tile += tile_step) {
#pragma unroll 1
        for (int box = first_box; box < end_box; ++box) {
          barrier_wait(&weights_empty[at.stage], at.turn);
          barrier_expect(&weights_full[at.stage], uint32_t(weight_bytes));
          tensor_load(ring + at.stage * weight_bytes, &weights, box, tile * p.tile_rows, &weights_full[at.stage], once);
          at.advance(p.stages);
        }
      }
    } else if (warp > kGroups * 4 && lane == 0) {
      depend();
      Place at{0, 1};
      for (int tile = first_tile; tile < p.tiles; tile += tile_step) {
#pragma unroll 1
        for (int box = first_box; box < end_box; ++box) {
          barrier_wait(&rows_empty[at.stage], at.turn);
          barrier_expect(&rows_full[at.stage], kRowBytes);
          tensor_load(row_ring + at.stage * kRowBytes, &rows, box, 0, &rows_full[at.stage]);
          at.advance(kRowStages);
        }
      }
    }
    __syncwarp();
    if (p.splits > 1) cluster_sync(), cluster_sync();
    return;
  }

  depend();
  const int group = __shfl_sync(~0u, int(threadIdx.x / 128), 0), in_group = warp % 4;
  float acc[N / 2];
  Place w_at, x_at;
  for (int tile = first_tile; tile < p.tiles; tile += tile_step) {
#pragma unroll 1
    for (int box = first_box; box < end_box; ++box) {
      barrier_wait(&weights_full[w_at.stage], w_at.turn);
      barrier_wait(&rows_full[x_at.stage], x_at.turn);
      // The last operand of a tile reads on past its end, into rows of the result that nobody looks at.
      const uint64_t w = wgmma_descriptor(shared_address(ring + w_at.stage * weight_bytes) + group * 64 * 128);
      const uint64_t x = wgmma_descriptor(shared_address(row_ring + x_at.stage * kRowBytes));
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step) Wgmma<T, N>::ss(acc, w + step * 2, x + step * 2, box > first_box || step > 0);
      wgmma_commit();
      // At once: while one group waits, another multiplies, and a stage given back early is worth more.
      wgmma_wait<0>();
      if (lane == 0) barrier_arrive(&weights_empty[w_at.stage]), barrier_arrive(&rows_empty[x_at.stage]);
      w_at.advance(p.stages), x_at.advance(kRowStages);
    }

    const int base = tile * p.tile_rows, end_row = min(base + p.tile_rows, p.n);
    const int row = base + group * 64 + in_group * 16 + lane / 4;
    if (p.splits == 1) {
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          write_pair<T>(p, j * 8 + lane % 4 * 2 + c, row, end_row, acc[j * 4 + c], acc[j * 4 + 2 + c]);
        }
      }
    } else {
      // Every block has read all of its rings by now; they hold the sums, of which each block adds up a share of x's rows.
      named_barrier<1>(kThreads);
      float4* sums = reinterpret_cast<float4*>(row_ring) + threadIdx.x;
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        sums[j * kThreads] = make_float4(acc[j * 4], acc[j * 4 + 1], acc[j * 4 + 2], acc[j * 4 + 3]);
      }
      cluster_sync();
      const int share = N / 8 / p.splits;
      for (int j = split * share; j < (split + 1) * share; ++j) {
        float4 part[4] = {};
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          if (s < p.splits) part[s] = load_from(&sums[j * kThreads], s);
        }
        float4 sum = part[0];
#pragma unroll
        for (int s = 1; s < 4; ++s) {
          if (s < p.splits) sum.x += part[s].x, sum.y += part[s].y, sum.z += part[s].z, sum.w += part[s].w;
        }
        write_pair<T>(p, j * 8 + lane % 4 * 2, row, end_row, sum.x, sum.z);
        write_pair<T>(p, j * 8 + lane % 4 * 2 + 1, row, end_row, sum.y, sum.w);
      }
    }
  }
  if (p.splits > 1) cluster_sync();  // nobody leaves while another may still read its sums
}

template <typename T, int N, int kGroups>
void go(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor x, const TilePlan& plan, TileParams p) {
  static const bool allowed = (allow_shared(tile_kernel<T, N, kGroups>, device.shared_per_block - 1024), true);
  (void)allowed;
  constexpr int row_bytes = kRowStages * N * 128;
  // The last operand of the last stage reads on past it.
  const int stage_bytes = p.tile_rows * 128, past = kGroups * 64 * 128 - stage_bytes;
  p.stages = std::min(kMostStages, (kRingBytes - row_bytes - past) / stage_bytes);
  const int used = row_bytes + p.stages * stage_bytes + past;
  const int blocks = std::min(p.tiles * plan.splits, device.multiprocessors / plan.splits * plan.splits);
  launch_clusters(stream, tile_kernel<T, N, kGroups>, dim3(unsigned(blocks)), plan.splits, kGroups * 128 + 64,
                  1024 + size_t(used), make_tensor_map(weight.data, weight.dtype, weight.n, weight.k, weight.k, p.tile_rows, 1),
                  make_tensor_map(x.data, x.dtype, x.rows, x.cols, x.stride, N, 1), p);
}

template <typename T, int N>
void by_tile(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor x, const TilePlan& plan,
             const TileParams& p) {
  if (p.tile_rows > 192) return go<T, N, 4>(stream, device, weight, x, plan, p);
  if (p.tile_rows > 128) return go<T, N, 3>(stream, device, weight, x, plan, p);
  go<T, N, 2>(stream, device, weight, x, plan, p);
}

// Clusters of so many blocks that the device has room for at a time: some of its multiprocessors may be left over.
int64_t clusters_at_once(const Device& device, int blocks) {
  if (blocks == 1) return device.multiprocessors;
  static std::map<std::pair<int, int>, int64_t> known;
  const auto found = known.find({device.index, blocks});
  if (found != known.end()) return found->second;
  const auto kernel = tile_kernel<__nv_bfloat16, kTileMaxRows, 2>;
  allow_shared(kernel, device.shared_per_block - 1024);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(device.multiprocessors / blocks * blocks));
  config.blockDim = dim3(2 * 128 + 64);
  config.dynamicSmemBytes = kRingBytes;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  OARLOCK_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
  return known[{device.index, blocks}] = clusters;
}

}  // namespace

TilePlan choose_tile_plan(const Device& device, const StreamWeight& weight, After after) {
  // Microseconds, as measured on an H200: the weight from memory, what a multiprocessor reads one after the other, and
  // beginning, adding up and ending.
  constexpr double kMemory = 4.4e6, kEach = 6.2e4;
  const int unit = after == After::gate ? 16 : 8;
  const double memory = double(weight.n) * double(weight.k) * 2 / kMemory;
  TilePlan best;
  double least = 0;
  for (int splits : {1, 2, 4}) {
    const double fixed = splits == 1 ? 3.5 : splits == 2 ? 5 : 5.5;
    const int64_t boxes = (weight.k / kBoxColumns + splits - 1) / splits, slots = clusters_at_once(device, splits);
    for (int tile = 64 + unit; tile <= 256; tile += unit) {
      const int64_t tiles = (weight.n + tile - 1) / tile, turns = (tiles + slots - 1) / slots;
      if (splits > 1 && (turns > 1 || weight.k / kBoxColumns < splits)) continue;
      const double each = double(turns * boxes) * (tile + kTileMaxRows) * 128 / kEach, cost = std::max(memory, each) + fixed;
      if (least == 0 || cost <= least) {
        least = cost;
        best = {tile, splits};
      }
    }
  }
  return best;
}

void tile_product(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                  const float* bias, After after, const TilePlan& plan) {
  require(x.rows >= 1 && x.rows <= kTileMaxRows, "a tiled product takes 1 to ", kTileMaxRows, " rows, not ", x.rows);
  require(streams(weight), "a tiled product takes a multiple of ", kBoxColumns, " columns, not ", weight.k);
  TileParams p = {};
  p.out = out.data;
  p.out_stride = out.stride;
  p.bias = bias;
  p.rows = int(x.rows);
  p.n = int(weight.n);
  p.tile_rows = plan.tile_rows;
  p.tiles = int((weight.n + plan.tile_rows - 1) / plan.tile_rows);
  p.boxes = int(weight.k / kBoxColumns);
  p.splits = plan.splits;
  p.float_out = out.dtype == DType::f32;
  p.gate = after == After::gate;
  if (x.dtype == DType::bf16) return by_tile<__nv_bfloat16, kTileMaxRows>(stream, device, weight, x, plan, p);
  by_tile<__half, kTileMaxRows>(stream, device, weight, x, plan, p);
}

}  // namespace oarlock::cuda
