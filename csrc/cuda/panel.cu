// Products for more than 64 rows. Rows of x are the 64-row operand of wgmma, two for each block, and rows of the weight its
// columns, so that a panel of the weight may have any width: as many rows as share a weight out among the multiprocessors.
//
// Two warps keep boxes of the weight and of x on their way through one ring; the weights do not depend on the kernels before
// this one, so theirs come while those still run. Every box of x is read by as many multiprocessors as there are panels of the
// weight, and the other way round: what L2 can give bounds these products as much as memory does. So neighbours
// with one panel of the weight may load it together, each a part of it for all (multicast). Where panels are fewer than
// multiprocessors, the blocks of a cluster split the columns and add their sums up through distributed shared memory, in order.
#include <algorithm>
#include <type_traits>

#include "base/error.h"
#include "cuda/element.cuh"
#include "cuda/panel.h"
#include "cuda/panel_write.cuh"
#include "cuda/ptx.cuh"
#include "cuda/wgmma.cuh"

namespace oarlock::cuda {
namespace {

constexpr int kBoxColumns = 64;  // 128 bytes, the swizzle's row
constexpr int kGroups = kPanelRows / 64, kThreads = kPanelThreads + 64;
constexpr int kRows = kPanelRows;
constexpr int kMostStages = 12;
constexpr int kRingBytes = 225 << 10;
constexpr int kBand = 16;  // panels of x that pass by a panel of the weight before the next one comes

// How a panel's sums end: gated, written as they are, or first added up with those of other blocks.
enum class Finish { gate, store, add };

// A place in the ring and the parity of the turn that it is in.
struct Place {
  int stage = 0, turn = 0;
  __device__ void advance(int stages) {
    if (++stage == stages) stage = 0, turn ^= 1;
  }
};

struct Panels {
  int x, weight;
};
// The panels of a unit for a block: bands of x, within them the weight, within that x.
template <Finish finish>
__device__ __forceinline__ Panels find_panels(const PanelParams& p, int unit, int rank) {
  if (finish == Finish::add) return {unit % p.x_units, unit / p.x_units};
  if (p.x_units == 1) return {p.share_weight > 1 ? rank : 0, unit};
  const int band_units = p.units / p.x_units * kBand, band = unit / band_units, within = unit % band_units;
  const int high = min(kBand, p.x_units - band * kBand);
  Panels panels{band * kBand + within % high, within / high};
  if (p.share_weight > 1) panels.x = panels.x * p.share_weight + rank;
  return panels;
}

template <typename T, int N, Finish finish, int kSplits>
__global__ void __launch_bounds__(kThreads, 1)
    panel_kernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap rows, const PanelParams p) {
  constexpr int kWeightBytes = N * 128, kRowBytes = kRows * 128, kStageBytes = kWeightBytes + kRowBytes;
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[kMostStages], weights_empty[kMostStages], rows_empty[kMostStages];
  uint8_t* ring = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared) + 1023) & ~uintptr_t(1023));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Blocks that split the columns have one unit each; what is known here need not be in the code.
  constexpr bool kAdds = finish == Finish::add;
  const int share_weight = kAdds ? 1 : p.share_weight, cluster = kAdds ? kSplits : share_weight;
  const int rank = int(blockIdx.x) % cluster, first_unit = int(blockIdx.x) / cluster, step = int(gridDim.x) / cluster;
  const int end_unit = kAdds ? first_unit + 1 : p.units;
  const int split = kAdds ? rank : 0;
  const int first_box = p.boxes * split / kSplits, end_box = p.boxes * (split + 1) / kSplits;

  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int s = 0; s < p.stages; ++s) {
      barrier_init(&full[s], 1);
      barrier_init(&weights_empty[s], kGroups * 4 * share_weight);
      barrier_init(&rows_empty[s], kGroups * 4);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (cluster > 1) cluster_arrive();
  release_successor();

  if (warp >= kGroups * 4) {
    // Neighbours' barriers are ready after this; weights of its own a block may load before.
    const bool early = warp == kGroups * 4 && share_weight == 1;
    if (cluster > 1 && !early) cluster_wait();
    if (warp == kGroups * 4 && lane == 0) {
      const uint64_t policy = policy_evict_first();
      const int part = N / share_weight, from = share_weight > 1 ? rank * part : 0;
      Place at{0, 1};  // a fresh ring is empty: the first waits pass
      for (int unit = first_unit; unit < end_unit; unit += step) {
        const int row = find_panels<finish>(p, unit, rank).weight * N + from;
        for (int box = first_box; box < end_box; ++box) {
          barrier_wait(&weights_empty[at.stage], at.turn);
          barrier_expect(&full[at.stage], kStageBytes);
          uint8_t* to = ring + at.stage * kStageBytes + kRowBytes + from * 128;
          if (share_weight > 1) {
            tensor_load_shared(to, &weights, box, row, &full[at.stage], (1 << share_weight) - 1);
          } else if (p.once) {
            tensor_load(to, &weights, box, row, &full[at.stage], policy);
          } else {
            tensor_load(to, &weights, box, row, &full[at.stage]);
          }
          at.advance(p.stages);
        }
      }
    } else if (warp > kGroups * 4 && lane == 0) {
      depend();
      Place at{0, 1};
      for (int unit = first_unit; unit < end_unit; unit += step) {
        const int row = find_panels<finish>(p, unit, rank).x * kRows;
        for (int box = first_box; box < end_box; ++box) {
          barrier_wait(&rows_empty[at.stage], at.turn);
          tensor_load(ring + at.stage * kStageBytes, &rows, box, row, &full[at.stage]);
          at.advance(p.stages);
        }
      }
    }
    __syncwarp();
    if (cluster > 1 && early) cluster_wait();
    if (kAdds) cluster_sync();
    if (cluster > 1) cluster_sync();
    return;
  }

  if (cluster > 1) cluster_wait();
  depend();
  const int group = __shfl_sync(~0u, int(threadIdx.x / 128), 0);
  float acc[N / 2];
  // Stages are given back late, so that the next one's products are issued before; where a group's products take longer, the
  // groups take turns well enough, and a stage given back at once is worth more.
  constexpr bool kLate = N <= 128;
  auto give_back = [&](int stage) {
    if (share_weight > 1) {
      if (lane < share_weight) barrier_arrive(&weights_empty[stage], lane);
    } else if (lane == 0) {
      barrier_arrive(&weights_empty[stage]);
    }
    if (lane == 0) barrier_arrive(&rows_empty[stage]);
  };
  Place at;
  for (int unit = first_unit; unit < end_unit; unit += step) {
    int read = -1;
    for (int box = first_box; box < end_box; ++box) {
      barrier_wait(&full[at.stage], at.turn);
      const uint32_t stage = shared_address(ring + at.stage * kStageBytes);
      const uint64_t x = wgmma_descriptor(stage + group * 64 * 128), w = wgmma_descriptor(stage + kRowBytes);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) Wgmma<T, N>::ss(acc, x + k * 2, w + k * 2, box > first_box || k > 0);
      wgmma_commit();
      if constexpr (kLate) {
        wgmma_wait<1>();
        if (read >= 0) give_back(read);
        read = at.stage;
      } else {
        wgmma_wait<0>();
        give_back(at.stage);
      }
      at.advance(p.stages);
    }
    if constexpr (kLate) {
      wgmma_wait<0>();
      give_back(read);
    }

    const Panels panels = find_panels<finish>(p, unit, rank);
    const int row = panels.x * kRows + group * 64 + warp % 4 * 16 + lane / 4, column = panels.weight * N;
    if constexpr (finish == Finish::gate) {
      write_gated<T, N>(p, acc, row, column, lane);
    } else if constexpr (finish == Finish::store) {
      write_panel<T, N>(p, acc, row, column, lane);
    } else {
      // Every block has read all of its ring by now, and it holds the sums.
      named_barrier<1>(kPanelThreads);
      float4* sums = reinterpret_cast<float4*>(ring) + threadIdx.x;
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
        sums[j * kPanelThreads] = make_float4(acc[j * 4], acc[j * 4 + 1], acc[j * 4 + 2], acc[j * 4 + 3]);
      }
      cluster_sync();
      add_and_write<T, N, kSplits>(p, sums, split, row, column, lane);
    }
  }
  if (cluster > 1) cluster_sync();  // nobody leaves while another may still read its sums or write to its ring
}

template <typename T, int N, Finish finish, int kSplits>
void go(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor x, PanelParams p) {
  static const bool allowed = (allow_shared(panel_kernel<T, N, finish, kSplits>, device.shared_per_block - 1024), true);
  (void)allowed;
  constexpr int kStageBytes = (N + kRows) * 128;
  p.stages = std::min(kMostStages, kRingBytes / kStageBytes);
  const int panels = int((weight.n + N - 1) / N), x_panels = int((x.rows + kRows - 1) / kRows);
  p.x_units = (x_panels + p.share_weight - 1) / p.share_weight;
  p.units = panels * p.x_units;
  p.once = p.x_units == 1;
  const int cluster = kSplits * p.share_weight, clusters = std::min(p.units, device.multiprocessors / cluster);
  require(kSplits == 1 || clusters == p.units, "a product of ", panels, " by ", x_panels, " panels can't be split in ",
          kSplits);
  launch_clusters(stream, panel_kernel<T, N, finish, kSplits>, dim3(unsigned(clusters * cluster)), cluster, kThreads,
                  1024 + size_t(p.stages) * kStageBytes,
                  make_tensor_map(weight.data, weight.dtype, weight.n, weight.k, weight.k, N / p.share_weight, 1),
                  make_tensor_map(x.data, x.dtype, x.rows, x.cols, x.stride, kRows, 1), p);
}

template <int width>
using Width = std::integral_constant<int, width>;
template <Finish finish>
using Finishes = std::integral_constant<Finish, finish>;

template <typename T>
void by_width(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor x, const PanelPlan& plan,
              const PanelParams& p) {
  auto one_of = [&](auto finish, auto... widths) {
    const bool found = ((plan.width == widths && (go<T, widths, finish, 1>(stream, device, weight, x, p), true)) || ...);
    if (!found) throw InvalidArgument(concat("no panel of this product is ", plan.width, " rows wide"));
  };
  if (p.gate) {
    return one_of(Finishes<Finish::gate>(), Width<224>(), Width<256>(), Width<192>(), Width<128>(), Width<112>(), Width<96>());
  }
  if (plan.splits > 1) {
    require(plan.width == kSplitWidth, "blocks that split columns have panels of ", kSplitWidth, " rows, not ", plan.width);
    return plan.splits == 2 ? go<T, kSplitWidth, Finish::add, 2>(stream, device, weight, x, p)
                            : go<T, kSplitWidth, Finish::add, 4>(stream, device, weight, x, p);
  }
  one_of(Finishes<Finish::store>(), Width<128>(), Width<96>(), Width<64>());
}

}  // namespace

void panel_product(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                   const float* bias, After after, const PanelPlan& plan) {
  require(takes_panels(weight), "a product in panels takes a multiple of 8 rows and of ", kBoxColumns, " columns, not ",
          weight.n, " and ", weight.k);
  PanelParams p = {};
  p.out = out.data;
  p.out_stride = out.stride;
  p.bias = bias;
  p.rows = int(x.rows);
  p.n = int(weight.n);
  p.boxes = int(weight.k / kBoxColumns);
  p.share_weight = plan.share_weight;
  p.float_out = out.dtype == DType::f32;
  p.gate = after == After::gate;
  if (x.dtype == DType::bf16) return by_width<__nv_bfloat16>(stream, device, weight, x, plan, p);
  by_width<__half>(stream, device, weight, x, plan, p);
}

}  // namespace oarlock::cuda
