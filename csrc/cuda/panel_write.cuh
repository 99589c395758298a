// How a panel's sums leave a block (panel.cu): gated, as they are, or added to those of the blocks that split the columns.
#pragma once

#include "cuda/element.cuh"
#include "cuda/panel.h"
#include "cuda/ptx.cuh"

namespace oarlock::cuda {

constexpr int kPanelThreads = kPanelRows / 64 * 128;  // that multiply, a warpgroup for each 64 rows of x

struct PanelParams {
  void* out;
  const float* bias;
  int64_t out_stride;
  int rows, n;
  int boxes;           // of 64 columns
  int share_weight;    // see PanelPlan
  int x_units, units;  // of work for a cluster: panels of x, or groups of them, and these times the weight's
  int stages;
  bool float_out, gate, once;  // once: nobody reads a box of the weight again
};

// Four lanes have four words each; lane i gets the i-th word of all of them.
__device__ __forceinline__ void transpose(uint32_t (&v)[4], int lane) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(~0u, lane & 1 ? v[i] : v[i + 1], 1);
    (lane & 1 ? v[i] : v[i + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(~0u, lane & 2 ? v[i] : v[i + 2], 2);
    (lane & 2 ? v[i] : v[i + 2]) = got;
  }
}

// Writes kBlocks groups of eight columns of the rows `row` and `row` + 8; pair(i, half) is a lane's two columns of group i.
template <typename T, int kBlocks, typename Pair>
__device__ __forceinline__ void write_blocks(const PanelParams& p, int row, int column, int end, int lane, Pair&& pair) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    T* out = static_cast<T*>(p.out) + int64_t(row + half * 8) * p.out_stride;
#pragma unroll
    for (int first = 0; first < kBlocks; first += 4) {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = first + i < kBlocks ? pair(first + i, half) : 0u;
      transpose(v, lane);
      const int block = first + lane % 4, at = column + block * 8;
      if (row + half * 8 < p.rows && block < kBlocks && at < end) {
        *reinterpret_cast<uint4*>(out + at) = make_uint4(v[0], v[1], v[2], v[3]);
      }
    }
  }
}

// Two neighbouring columns of a row.
template <typename T>
__device__ __forceinline__ void write_pair(const PanelParams& p, int row, int column, float first, float second) {
  if (row >= p.rows || column >= p.n) return;
  if (p.bias != nullptr) first += p.bias[column], second += p.bias[column + 1];
  const int64_t at = int64_t(row) * p.out_stride + column;
  if (p.float_out) {
    *reinterpret_cast<float2*>(static_cast<float*>(p.out) + at) = make_float2(first, second);
  } else {
    *reinterpret_cast<uint32_t*>(static_cast<T*>(p.out) + at) = pack2<T>(first, second);
  }
}

template <typename T, int N>
__device__ __forceinline__ void write_gated(const PanelParams& p, const float (&acc)[N / 2], int row, int column, int lane) {
  write_blocks<T, N / 16>(p, row, column / 2, p.n / 2, lane, [&](int block, int half) {
    const float* gate = acc + block * 8 + half * 2;
    return pack2<T>(quick_silu(gate[0]) * gate[4], quick_silu(gate[1]) * gate[5]);
  });
}

template <typename T, int N>
__device__ __forceinline__ void write_panel(const PanelParams& p, const float (&acc)[N / 2], int row, int column, int lane) {
  if (p.float_out) {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      write_pair<T>(p, row, column + j * 8 + lane % 4 * 2, acc[j * 4], acc[j * 4 + 1]);
      write_pair<T>(p, row + 8, column + j * 8 + lane % 4 * 2, acc[j * 4 + 2], acc[j * 4 + 3]);
    }
    return;
  }
  write_blocks<T, N / 8>(p, row, column, p.n, lane, [&](int block, int half) {
    float first = acc[block * 4 + half * 2], second = acc[block * 4 + half * 2 + 1];
    const int at = column + block * 8 + lane % 4 * 2;
    if (p.bias != nullptr && at < p.n) first += p.bias[at], second += p.bias[at + 1];
    return pack2<T>(first, second);
  });
}

// Every block of the cluster has its sums in shared memory; each adds up and writes a share of the columns.
template <typename T, int N, int kSplits>
__device__ __forceinline__ void add_and_write(const PanelParams& p, const float4* sums, int split, int row, int column,
                                              int lane) {
  constexpr int kMine = N / 8 / kSplits;  // groups of eight columns
  static_assert(kMine % 2 == 0 && kMine * kSplits == N / 8, "blocks have equal shares, and two groups are added at a time");
#pragma unroll
  for (int turn = 0; turn < kMine; turn += 2) {
    const int first = kMine * split + turn;
    float4 part[2][kSplits];  // all on their way before the first is needed
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int s = 0; s < kSplits; ++s) part[i][s] = load_from(&sums[(first + i) * kPanelThreads], s);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float4 sum = part[i][0];
#pragma unroll
      for (int s = 1; s < kSplits; ++s) {
        sum.x += part[i][s].x, sum.y += part[i][s].y, sum.z += part[i][s].z, sum.w += part[i][s].w;
      }
      write_pair<T>(p, row, column + (first + i) * 8 + lane % 4 * 2, sum.x, sum.y);
      write_pair<T>(p, row + 8, column + (first + i) * 8 + lane % 4 * 2, sum.z, sum.w);
    }
  }
}

}  // namespace oarlock::cuda
