// A tile against a partition, written once (AMX has a partition() of its own). A version K says how products are computed:
//   K::V            vector type (vector/*.h)
//   K::Cache        element of the cache, queries and output
//   K::Query        element that queries are held in
//   K::Probability  element that probabilities are held in: float (over the scores) or bf16
//   K::kGroupRows   rows (16 or 32) whose scores are in the making together
//   K::score(tile, scratch, blocks, first_row, rows)     a group's scores, from the first row's on
//   K::sum(tile, scratch, blocks, first_row, rows, out)  its weighted sums
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/attention/tile.h"

namespace oarlock::cpu {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

static inline constexpr int query_stride(int head_dim) { return (head_dim + 31) / 32 * 32; }

// A key's place in the partition, or the nearer end of it.
static inline int within(const PartitionBlocks& blocks, int32_t key) {
  const int64_t relative = int64_t(key) - blocks.first_key;
  return relative < 0 ? 0 : relative > kPartitionKeys ? kPartitionKeys : int(relative);
}

template <class K>
struct PartitionSteps {
  using V = typename K::V;
  using F = typename V::F;
  using Probability = typename K::Probability;
  static constexpr int kVectors = kBlockTokens / V::kLanes;  // a block

  static void clear_blocks(Probability* row, int begin, int end) {
    if (begin < end) std::memset(row + begin * kBlockTokens, 0, size_t(end - begin) * kBlockTokens * sizeof(Probability));
  }

  static void begin(const AttentionTile& tile, TileScratch& scratch) {
    using Query = typename K::Query;
    const int stride = query_stride(tile.head_dim);
    for (int r = 0; r < tile.rows; ++r) {
      Query* to = static_cast<Query*>(scratch.queries) + r * stride;
      const auto* from = static_cast<const typename K::Cache*>(tile.query[r]);
      if constexpr (std::is_same_v<Query, typename K::Cache>) {
        constexpr int kPiece = 16;  // copied by a register or two, not by a call
        for (int i = 0; i < tile.head_dim; i += kPiece) std::memcpy(to + i, from + i, kPiece * sizeof(Query));
      } else {
        for (int i = 0; i < tile.head_dim; i += V::kLanes) V::store(to + i, V::load(from + i));
      }
      for (int i = tile.head_dim; i < stride; ++i) to[i] = Query{};
    }
    // Rows that fill up the last group are computed with by some versions, and never read.
    std::memset(static_cast<Query*>(scratch.queries) + tile.rows * stride, 0,
                size_t(whole_groups(tile.rows) - tile.rows) * size_t(stride) * sizeof(Query));
    K::configure(tile.rows);
  }

  // Scores to probabilities, one row; returns its maximum and sum. Masked scores are replaced, never computed with.
  static void softmax_row(float* scores, Probability* probabilities, int low, int high, const PartitionBlocks& blocks,
                          float scale, float& maximum, float& sum) {
    if (low >= high) {
      clear_blocks(probabilities, blocks.begin, blocks.end);
      maximum = kMinusInfinity;
      sum = 0;
      return;
    }
    const int first = low / kBlockTokens, last = (high + kBlockTokens - 1) / kBlockTokens;
    const F nothing = V::set1(kMinusInfinity);
    F largest[4] = {nothing, nothing, nothing, nothing};
    for (int b = first; b < last; ++b) {
      float* at = scores + b * kBlockTokens;
      if (b * kBlockTokens >= low && (b + 1) * kBlockTokens <= high) {
        for (int v = 0; v < kVectors; ++v) largest[v % 4] = V::max(largest[v % 4], V::load(at + v * V::kLanes));
        continue;
      }
      for (int v = 0; v < kVectors; ++v) {
        int column = b * kBlockTokens + v * V::kLanes;
        F kept = V::keep_range(V::load(at + v * V::kLanes), low - column, high - column, nothing);
        V::store(at + v * V::kLanes, kept);
        largest[v % 4] = V::max(largest[v % 4], kept);
      }
    }
    maximum = V::reduce_max(V::max(V::max(largest[0], largest[1]), V::max(largest[2], largest[3]))) * scale;
    // Visible scores that are all -inf must give zeros, and -inf - -inf is NaN.
    const F shift = V::set1(maximum == kMinusInfinity ? 0.0f : -maximum);
    const F factor = V::set1(scale);
    F sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    for (int b = first; b < last; ++b) {
      for (int v = 0; v < kVectors; v += 2) {
        int column = b * kBlockTokens + v * V::kLanes;
        F p = K::power_of_two(V::fma(V::load(scores + column), factor, shift));
        F q = K::power_of_two(V::fma(V::load(scores + column + V::kLanes), factor, shift));
        sums[v % 4] = V::add(sums[v % 4], p);
        sums[v % 4 + 1] = V::add(sums[v % 4 + 1], q);
        K::store_probabilities(probabilities + column, p, q);
      }
    }
    sum = V::reduce_add(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
    clear_blocks(probabilities, blocks.begin, first);
    clear_blocks(probabilities, last, blocks.end);
  }

  static void softmax(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, Partial result,
                      int first_row, int row) {
    float* scores = scratch.scores + row * kScoreStride;
    Probability* probabilities;
    if constexpr (std::is_same_v<Probability, float>) {
      probabilities = scores;
    } else {
      probabilities = scratch.probabilities + row * kProbabilityStride;
    }
    const int r = first_row + row;
    softmax_row(scores, probabilities, within(blocks, tile.low[r]), within(blocks, tile.high[r]), blocks, tile.scale_log2,
                result.maximum[r], result.sum[r]);
  }

  static void partition(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, Partial result) {
    for (int first_row = 0; first_row < tile.rows; first_row += K::kGroupRows) {
      const int rows = tile.rows - first_row < K::kGroupRows ? tile.rows - first_row : K::kGroupRows;
      K::score(tile, scratch, blocks, first_row, rows);
      for (int row = 0; row < rows; ++row) softmax(tile, blocks, scratch, result, first_row, row);
      K::sum(tile, scratch, blocks, first_row, rows, result.out + first_row * tile.head_dim);
    }
  }

  static void merge(int rows, int head_dim, Partial into, Partial next) {
    alignas(64) float before[kTileRows], keep[kTileRows], take[kTileRows];
    const F lowest = V::set1(-std::numeric_limits<float>::max());  // -inf - -inf would be NaN
    for (int r = 0; r < rows; r += V::kLanes) {
      F first = V::load(into.maximum + r), second = V::load(next.maximum + r), maximum = V::max(first, second);
      F bounded = V::max(maximum, lowest);
      F kept = V::exp2(V::sub(first, bounded)), taken = V::exp2(V::sub(second, bounded));
      V::store(before + r, first);
      V::store(keep + r, kept);
      V::store(take + r, taken);
      V::store(into.maximum + r, maximum);
      V::store(into.sum + r, V::add(V::mul(V::load(into.sum + r), kept), V::mul(V::load(next.sum + r), taken)));
    }
    for (int r = 0; r < rows; ++r) {
      float *out = into.out + r * head_dim, *more = next.out + r * head_dim;
      if (next.maximum[r] == kMinusInfinity) continue;
      if (before[r] == kMinusInfinity) {
        std::memcpy(out, more, size_t(head_dim) * 4);
        continue;
      }
      F kept = V::set1(keep[r]), taken = V::set1(take[r]);
      for (int i = 0; i < head_dim; i += V::kLanes) {
        V::store(out + i, V::fma(V::load(more + i), taken, V::mul(V::load(out + i), kept)));
      }
    }
  }

  static void finish(const AttentionTile& tile, Partial total) {
    for (int r = 0; r < tile.rows; ++r) {
      const float* from = total.out + r * tile.head_dim;
      auto* to = static_cast<typename K::Cache*>(tile.out[r]);
      F inverse = V::set1(1.0f / total.sum[r]);
      // The + 0 turns a -0 into 0: whether a masked block was multiplied by zeros or skipped then shows nowhere.
      for (int i = 0; i < tile.head_dim; i += V::kLanes) {
        V::store(to + i, V::add(V::mul(V::load(from + i), inverse), V::zero()));
      }
    }
  }

  static constexpr AttentionKernel kernel() { return {begin, partition, merge, finish, K::release}; }
};

}  // namespace oarlock::cpu
