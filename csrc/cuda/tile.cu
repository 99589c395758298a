// Products for 33 to 128 rows. Here the rows of x, which every tile of the weight needs, are as many as the tile's own, and
// reading them from L2 becomes what limits the speed. So a tile has up to 256 rows of the weight, two neighbours load half of
// x each for both (multicast within a cluster), and where that leaves fewer tiles than multiprocessors, the columns are split
// among the blocks of a cluster, which add their sums up through distributed shared memory, in order.
//
// A warp keeps the ring full; each of kGroups warpgroups multiplies 64 rows of the tile (see stream.cu for the operands).
// The weights do not depend on the kernels before this one, so the ring fills while those still run.
#include <algorithm>

#include "base/error.h"
#include "cuda/element.cuh"
#include "cuda/ptx.cuh"
#include "cuda/tile.h"
#include "cuda/wgmma.cuh"

namespace oarlock::cuda {
namespace {

constexpr int kBoxColumns = 64;  // 128 bytes, the swizzle's row
constexpr int kMostStages = 12;
constexpr int kRingBytes = 220 << 10;

struct TileParams {
  void* out;
  const float* bias;
  int64_t out_stride;
  int rows, n;
  int tile_rows, tiles;  // of the weight, the number rounded up to whole pairs
  int boxes;             // of 64 columns
  int splits, pair, stages;
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

template <typename T, int N, int kGroups>
__global__ void __launch_bounds__(kGroups * 128 + 32, 1)
    tile_kernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap rows, const TileParams p) {
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[kMostStages], empty[kMostStages];
  uint8_t* ring = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared) + 1023) & ~uintptr_t(1023));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int cluster_blocks = p.pair * p.splits, rank = int(blockIdx.x) % cluster_blocks;
  const int in_pair = rank % p.pair, split = rank / p.pair, first_peer = split * p.pair;
  const int first_tile = int(blockIdx.x) / cluster_blocks * p.pair + in_pair;
  const int tile_step = int(gridDim.x) / p.splits;
  const int first_box = p.boxes * split / p.splits, end_box = p.boxes * (split + 1) / p.splits;
  const int weight_bytes = p.tile_rows * 128, stage_bytes = weight_bytes + N * 128;

  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], kGroups * 4 * p.pair);
    barrier_init_fence();
  }
  if (cluster_blocks > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  release_successor();

  if (warp == kGroups * 4) {
    if (lane == 0) {
      const uint64_t once = policy_evict_first();
      const int own_rows = N / p.pair;
      const uint16_t both = uint16_t(((1 << p.pair) - 1) << first_peer);
      auto load_weights = [&](int tile, int box, int stage) {
        barrier_expect(&full[stage], uint32_t(stage_bytes));
        tensor_load(ring + stage * stage_bytes, &weights, box, tile * p.tile_rows, &full[stage], once);
      };
      auto load_rows = [&](int box, int stage) {
        uint8_t* to = ring + stage * stage_bytes + weight_bytes + in_pair * own_rows * 128;
        if (p.pair == 1) {
          tensor_load(to, &rows, box, 0, &full[stage]);
        } else {
          tensor_load_multicast(to, &rows, box, in_pair * own_rows, &full[stage], both);
        }
      };
      const int early = min(p.stages, end_box - first_box);
      for (int s = 0; s < early; ++s) load_weights(first_tile, first_box + s, s);
      depend();
      for (int s = 0; s < early; ++s) load_rows(first_box + s, s);
      int stage = early == p.stages ? 0 : early, phase = early == p.stages ? 0 : 1;
      for (int tile = first_tile; tile < p.tiles; tile += tile_step) {
        for (int box = tile == first_tile ? first_box + early : first_box; box < end_box; ++box) {
          barrier_wait(&empty[stage], phase);
          load_weights(tile, box, stage);
          load_rows(box, stage);
          if (++stage == p.stages) stage = 0, phase ^= 1;
        }
      }
    }
    __syncwarp();
    if (p.splits > 1) cluster_sync();
    if (cluster_blocks > 1) cluster_sync();
    return;
  }

  depend();
  const int group = __shfl_sync(~0u, int(threadIdx.x / 128), 0), in_group = warp % 4;
  float acc[N / 2];
  int stage = 0, phase = 0;
  for (int tile = first_tile; tile < p.tiles; tile += tile_step) {
    int read = -1;  // the stage that the products in flight read, given back when the next stage's have been issued
    auto give_back = [&] {
      if (read >= 0 && lane < p.pair) barrier_arrive_at(&empty[read], first_peer + lane);
    };
    for (int box = first_box; box < end_box; ++box) {
      barrier_wait(&full[stage], phase);
      const uint32_t address = shared_address(ring + stage * stage_bytes);
      const uint64_t w = wgmma_descriptor(address + group * 64 * 128), x = wgmma_descriptor(address + weight_bytes);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step) Wgmma<T, N>::ss(acc, w + step * 2, x + step * 2, box > first_box || step > 0);
      wgmma_commit();
      wgmma_wait<1>();
      give_back();
      read = stage;
      if (++stage == p.stages) stage = 0, phase ^= 1;
    }
    wgmma_wait<0>();
    give_back();

    const int row = tile * p.tile_rows + group * 64 + in_group * 16 + lane / 4;
    const int end_row = min(tile * p.tile_rows + min(p.tile_rows, (group + 1) * 64), p.n);
    if (p.splits == 1) {
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          write_pair<T>(p, j * 8 + lane % 4 * 2 + i, row, end_row, acc[j * 4 + i], acc[j * 4 + 2 + i]);
        }
      }
    } else {
      // Every block has read all of its ring by now; it holds the sums, of which each block adds up a share of x's rows.
      constexpr int kThreads = kGroups * 128;
      named_barrier<1>(kThreads);
      float4* sums = reinterpret_cast<float4*>(ring);
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        sums[j * kThreads + threadIdx.x] = make_float4(acc[j * 4], acc[j * 4 + 1], acc[j * 4 + 2], acc[j * 4 + 3]);
      }
      cluster_sync();
      const int share = N / 8 / p.splits;
      for (int j = split * share; j < (split + 1) * share; ++j) {
        float4 part[4];
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          if (s < p.splits) part[s] = load_from(&sums[j * kThreads + threadIdx.x], s * p.pair + in_pair);
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
  // Nobody leaves while another may still write to, or read from, its shared memory.
  if (cluster_blocks > 1) cluster_sync();
}

template <typename T, int N, int kGroups>
void go(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor x, const TilePlan& plan, TileParams p) {
  static const bool allowed = (allow_shared(tile_kernel<T, N, kGroups>, device.shared_per_block - 1024), true);
  (void)allowed;
  const int stage_bytes = (p.tile_rows + N) * 128, cluster = plan.pair * plan.splits;
  p.stages = std::min(kMostStages, kRingBytes / stage_bytes);
  const int blocks = std::min(p.tiles * plan.splits, device.multiprocessors / cluster * cluster);
  launch_clusters(stream, tile_kernel<T, N, kGroups>, dim3(unsigned(blocks)), cluster, kGroups * 128 + 32,
                  1024 + size_t(p.stages) * size_t(stage_bytes),
                  make_tensor_map(weight.data, weight.dtype, weight.n, weight.k, weight.k, p.tile_rows, 1),
                  make_tensor_map(x.data, x.dtype, x.rows, x.cols, x.stride, N / plan.pair, 1), p);
}

template <typename T, int N>
void by_tile(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor x, const TilePlan& plan,
             const TileParams& p) {
  if (p.tile_rows > 192) return go<T, N, 4>(stream, device, weight, x, plan, p);
  if (p.tile_rows > 128) return go<T, N, 3>(stream, device, weight, x, plan, p);
  go<T, N, 2>(stream, device, weight, x, plan, p);
}

template <typename T>
void by_rows(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor x, const TilePlan& plan,
             const TileParams& p) {
  if (x.rows <= 64) return by_tile<T, 64>(stream, device, weight, x, plan, p);
  by_tile<T, 128>(stream, device, weight, x, plan, p);
}

}  // namespace

TilePlan choose_tile_plan(const Device& device, const StreamWeight& weight, int64_t rows, After after) {
  // Columns of the weight that a multiprocessor reads one after the other, in elements: what x costs beside them, and what
  // adding sums up costs, are estimates.
  constexpr double kRowCost = 0.4, kSumCost = 6000;
  const int unit = after == After::gate ? 16 : 8;
  const double x_rows = rows <= 64 ? 64 : 128;
  TilePlan best;
  double least = 0;
  for (int splits : {1, 2, 4}) {
    if (weight.k / kBoxColumns < splits) continue;
    for (int pair : {2, 1}) {
      const int64_t slots = device.multiprocessors / (pair * splits) * pair;  // tiles at a time
      for (int tile = 64 + unit; tile <= 256; tile += unit) {
        const int64_t tiles = (weight.n + int64_t(tile) * pair - 1) / (int64_t(tile) * pair) * pair;
        const int64_t turns = (tiles + slots - 1) / slots;
        if (splits > 1 && turns > 1) continue;
        const double cost =
            double(turns) * double(weight.k) / splits * (tile + kRowCost * x_rows / pair) + kSumCost * (splits - 1);
        if (least == 0 || cost < least) {
          least = cost;
          best = {tile, splits, pair};
        }
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
  p.tiles = int((weight.n + plan.tile_rows * plan.pair - 1) / (plan.tile_rows * plan.pair)) * plan.pair;
  p.boxes = int(weight.k / kBoxColumns);
  p.splits = plan.splits;
  p.pair = plan.pair;
  p.float_out = out.dtype == DType::f32;
  p.gate = after == After::gate;
  if (x.dtype == DType::bf16) return by_rows<__nv_bfloat16>(stream, device, weight, x, plan, p);
  by_rows<__half>(stream, device, weight, x, plan, p);
}

}  // namespace oarlock::cuda
