// A tile against a partition, written once. A version K says how products are computed:
//   K::V            vector type (vector/*.h)
//   K::Cache        element of the cache, queries and output
//   K::Query        element that queries are held in
//   K::Probability  element that probabilities are held in: float (over the scores) or bf16
//   K::kOverlap     products run beside the vector units, so that a group's exponentials hide its neighbours' products
//   K::score_slice(tile, scratch, blocks, group, slice)     one of score_slices() parts of a group's scores
//   K::sum_slice(tile, scratch, blocks, group, slice, out)  one of sum_slices() parts of its weighted sum, in order
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/attention/tile.h"

namespace oarlock::cpu {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

static inline constexpr int query_stride(int head_dim) { return (head_dim + 31) / 32 * 32; }

static inline float* group_scores(TileScratch& scratch, int group) {
  return scratch.scores + group % 2 * kRowGroup * kScoreStride;
}
static inline bf16* group_probabilities(TileScratch& scratch, int group) {
  return scratch.probabilities + group % 2 * kRowGroup * kProbabilityStride;
}
static inline int group_rows(const AttentionTile& tile, int group) {
  return tile.rows - group * kRowGroup < kRowGroup ? tile.rows - group * kRowGroup : kRowGroup;
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
        std::memcpy(to, from, size_t(tile.head_dim) * sizeof(Query));
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

  static void softmax(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, Partial result, int group,
                      int row) {
    auto within = [&](int32_t key) {
      int64_t relative = int64_t(key) - blocks.first_key;
      return relative < 0 ? 0 : relative > kPartitionKeys ? kPartitionKeys : int(relative);
    };
    float* scores = group_scores(scratch, group) + row * kScoreStride;
    Probability* probabilities;
    if constexpr (std::is_same_v<Probability, float>) {
      probabilities = scores;
    } else {
      probabilities = group_probabilities(scratch, group) + row * kProbabilityStride;
    }
    const int r = group * kRowGroup + row;
    softmax_row(scores, probabilities, within(tile.low[r]), within(tile.high[r]), blocks, tile.scale_log2, result.maximum[r],
                result.sum[r]);
  }

  static void partition(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, Partial result) {
    const int groups = (tile.rows + kRowGroup - 1) / kRowGroup;
    const int score_slices = K::score_slices(tile, blocks), sum_slices = K::sum_slices(tile, blocks);
    // Slices [done, until) of a group's scores or weighted sum.
    auto score = [&](int group, int& done, int until) {
      for (; done < until; ++done) K::score_slice(tile, scratch, blocks, group, done);
    };
    auto sum = [&](int group, int& done, int until) {
      for (; done < until; ++done) K::sum_slice(tile, scratch, blocks, group, done, result.out);
    };
    int scored = 0, summed = 0;
    score(0, scored, score_slices);
    for (int group = 0; group < groups; ++group) {
      const int rows = group_rows(tile, group);
      if constexpr (K::kOverlap) {
        const int ahead = group + 1 < groups ? score_slices : 0, behind = group > 0 ? sum_slices : 0;
        scored = summed = 0;
        for (int row = 0; row < rows; ++row) {
          softmax(tile, blocks, scratch, result, group, row);
          score(group + 1, scored, ahead * (row + 1) / rows);
          sum(group - 1, summed, behind * (row + 1) / rows);
        }
        continue;
      }
      for (int row = 0; row < rows; ++row) softmax(tile, blocks, scratch, result, group, row);
      summed = scored = 0;
      sum(group, summed, sum_slices);
      if (group + 1 < groups) score(group + 1, scored, score_slices);
    }
    summed = 0;
    if constexpr (K::kOverlap) sum(groups - 1, summed, sum_slices);
  }

  static float power(float x) {
    alignas(64) float lanes[V::kLanes];
    V::store(lanes, V::exp2(V::set1(x)));
    return lanes[0];
  }

  static void merge(int rows, int head_dim, Partial into, Partial next) {
    for (int r = 0; r < rows; ++r) {
      float *out = into.out + r * head_dim, *more = next.out + r * head_dim;
      if (next.maximum[r] == kMinusInfinity) continue;
      if (into.maximum[r] == kMinusInfinity) {
        into.maximum[r] = next.maximum[r];
        into.sum[r] = next.sum[r];
        std::memcpy(out, more, size_t(head_dim) * 4);
        continue;
      }
      float maximum = next.maximum[r] > into.maximum[r] ? next.maximum[r] : into.maximum[r];
      float keep = power(into.maximum[r] - maximum), take = power(next.maximum[r] - maximum);
      into.maximum[r] = maximum;
      into.sum[r] = into.sum[r] * keep + next.sum[r] * take;
      F kept = V::set1(keep), taken = V::set1(take);
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
