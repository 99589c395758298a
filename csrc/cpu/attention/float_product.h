// Products in float32 for machines without bf16 arithmetic and for the float32 cache: a register block of rows x vectors,
// each element summed over the contraction in order, so that the block's shape shows nowhere.
#pragma once

#include <type_traits>

#include "cpu/attention/partition.h"

namespace oarlock::cpu {

// Cache: bf16 in pairs (kv_layout.h) or float.
template <class Vector, class CacheElement>
struct FloatProduct {
  using V = Vector;
  using F = typename V::F;
  using Cache = CacheElement;
  using Query = float;
  using Probability = float;
  static constexpr int kGroupRows = 16;
  static constexpr int kVectors = V::kLanes == 16 ? 4 : 2;  // 16 or 8 accumulators of 32 or 16 registers

  static void configure(int) {}
  static void release() {}
  static F power_of_two(F x) { return V::exp2(x); }
  static void store_probabilities(float* to, F p, F q) {
    V::store(to, p);
    V::store(to + V::kLanes, q);
  }

  // Rows 2*pair and 2*pair + 1 of b at a column.
  static void load_two(const Cache* b, int stride, int pair, int column, F& first, F& second) {
    if constexpr (std::is_same_v<Cache, bf16>) {
      V::load_pairs(b + (int64_t(pair) * stride + column) * 2, first, second);
    } else {
      first = V::load(b + int64_t(2 * pair) * stride + column);
      second = V::load(b + int64_t(2 * pair + 1) * stride + column);
    }
  }

  // c[kRows][kWide vectors] = or += a[kRows][2*pairs] b[2*pairs][...] from `column` on.
  template <int kRows, int kWide>
  static void block(const float* a, int a_stride, const Cache* b, int b_stride, float* c, int c_stride, int column, int pairs,
                    bool accumulate) {
    F sums[kRows][kWide];
    for (int r = 0; r < kRows; ++r)
      for (int w = 0; w < kWide; ++w) sums[r][w] = accumulate ? V::load(c + r * c_stride + column + w * V::kLanes) : V::zero();
    for (int pair = 0; pair < pairs; ++pair) {
      F first[kWide], second[kWide];
      for (int w = 0; w < kWide; ++w) load_two(b, b_stride, pair, column + w * V::kLanes, first[w], second[w]);
      for (int r = 0; r < kRows; ++r) {
        F x = V::set1(a[r * a_stride + 2 * pair]), y = V::set1(a[r * a_stride + 2 * pair + 1]);
        for (int w = 0; w < kWide; ++w) sums[r][w] = V::fma(y, second[w], V::fma(x, first[w], sums[r][w]));
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int w = 0; w < kWide; ++w) V::store(c + r * c_stride + column + w * V::kLanes, sums[r][w]);
  }

  template <int kRows>
  static void rows(const float* a, int a_stride, const Cache* b, int b_stride, float* c, int c_stride, int columns, int pairs,
                   bool accumulate) {
    int column = 0;
    for (; column + kVectors * V::kLanes <= columns; column += kVectors * V::kLanes)
      block<kRows, kVectors>(a, a_stride, b, b_stride, c, c_stride, column, pairs, accumulate);
    for (; column < columns; column += V::kLanes)
      block<kRows, 1>(a, a_stride, b, b_stride, c, c_stride, column, pairs, accumulate);
  }

  static void product(int count, const float* a, int a_stride, const Cache* b, int b_stride, float* c, int c_stride,
                      int columns, int pairs, bool accumulate) {
    int r = 0;
    auto part = [&](auto how_many) {
      constexpr int kRows = decltype(how_many)::value;
      rows<kRows>(a + r * a_stride, a_stride, b, b_stride, c + r * c_stride, c_stride, columns, pairs, accumulate);
      r += kRows;
    };
    while (r + 4 <= count) part(std::integral_constant<int, 4>{});
    if (count - r == 3) part(std::integral_constant<int, 3>{});
    if (count - r == 2) part(std::integral_constant<int, 2>{});
    if (count - r == 1) part(std::integral_constant<int, 1>{});
  }

  static void score(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int first_row, int rows) {
    const int stride = query_stride(tile.head_dim);
    for (int b = blocks.begin; b < blocks.end; ++b) {
      product(rows, static_cast<const float*>(scratch.queries) + first_row * stride, stride,
              static_cast<const Cache*>(blocks.keys[b]), kBlockTokens, scratch.scores + b * kBlockTokens, kScoreStride,
              kBlockTokens, tile.head_dim / 2, false);
    }
  }

  static void sum(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int, int rows, float* out) {
    for (int b = blocks.begin; b < blocks.end; ++b) {
      product(rows, scratch.scores + b * kBlockTokens, kScoreStride, static_cast<const Cache*>(blocks.values[b]), tile.head_dim,
              out, tile.head_dim, tile.head_dim, kBlockTokens / 2, b > blocks.begin);
    }
  }
};

}  // namespace oarlock::cpu
