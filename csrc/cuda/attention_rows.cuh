// Sixteen query rows of a warp over whole blocks of keys and values in shared memory: prompts, and prefixes that sequences
// share. A thread has parts of rows lane / 4 and lane / 4 + 8.
#pragma once

#include <cstdint>

#include "cuda/element.cuh"
#include "cuda/elementwise.h"
#include "cuda/ptx.cuh"

namespace oarlock::cuda {

template <typename T, int D>
struct Rows {
  uint32_t q[D / 16][4];
  float out[D / 8][4] = {}, maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  // from(r): the query of row lane / 4 + 8 r, or null, which is zeros.
  template <typename From>
  __device__ __forceinline__ explicit Rows(From&& from) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const T* row = from(r);
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
        const int column = i * 8 + threadIdx.x % 4 * 2;
        q[i / 2][r + i % 2 * 2] = row != nullptr ? *reinterpret_cast<const uint32_t*>(row + column) : 0;
      }
    }
  }

  // The block at shared address `at`, keys before values. mask(r, key) is false where row r does not see key `key` of the
  // block; when not `masked`, it sees all. scale: times log2(e).
  template <typename Mask>
  __device__ __forceinline__ void take_block(uint32_t at, float scale, bool masked, Mask&& mask) {
    const int lane = threadIdx.x % 32, matrix = lane / 8, in_matrix = lane % 8;
    float score[kBlockTokens / 8][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      const int column = step * 16 + matrix % 2 * 8;
#pragma unroll
      for (int keys = 0; keys < kBlockTokens / 16; ++keys) {
        uint32_t k[4];
        load_matrices(k, at + column / 64 * kGroupBytes + swizzled(keys * 16 + matrix / 2 * 8 + in_matrix, column % 64 * 2));
        mma<T>(score[keys * 2], q[step], k[0], k[1]);
        mma<T>(score[keys * 2 + 1], q[step], k[2], k[3]);
      }
    }
    if (masked) {
#pragma unroll
      for (int n = 0; n < kBlockTokens / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (!mask(i / 2, n * 8 + lane % 4 * 2 + i % 2)) score[n][i] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < kBlockTokens / 8; ++n) top = fmaxf(top, fmaxf(score[n][r * 2], score[n][r * 2 + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * scale;
      const float next = fmaxf(maximum[r], top), base = next == -INFINITY ? 0.f : next;
      const float shrink = exp2f(maximum[r] - base);
      maximum[r] = next;
      float added = 0;
#pragma unroll
      for (int n = 0; n < kBlockTokens / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& s = score[n][r * 2 + i];
          s = exp2f(s * scale - base);
          added += s;
        }
      }
      sum[r] = sum[r] * shrink + added;
#pragma unroll
      for (int j = 0; j < D / 8; ++j) out[j][r * 2] *= shrink, out[j][r * 2 + 1] *= shrink;
    }
#pragma unroll
    for (int keys = 0; keys < kBlockTokens / 16; ++keys) {
      const uint32_t weights[4] = {
          pack2<T>(score[keys * 2][0], score[keys * 2][1]), pack2<T>(score[keys * 2][2], score[keys * 2][3]),
          pack2<T>(score[keys * 2 + 1][0], score[keys * 2 + 1][1]), pack2<T>(score[keys * 2 + 1][2], score[keys * 2 + 1][3])};
#pragma unroll
      for (int j = 0; j < D / 16; ++j) {
        uint32_t v[4];
        const int column = j * 16 + matrix / 2 * 8;
        load_matrices_transposed(v, at + D / 64 * kGroupBytes + column / 64 * kGroupBytes +
                                        swizzled(keys * 16 + matrix % 2 * 8 + in_matrix, column % 64 * 2));
        mma<T>(out[j * 2], weights, v[0], v[1]);
        mma<T>(out[j * 2 + 1], weights, v[2], v[3]);
      }
    }
  }

  // Adds up the weights, of which each thread has a part. After the last block.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
      sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    }
  }
};

}  // namespace oarlock::cuda
