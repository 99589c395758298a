// The passes of scan.h written once for every vector width.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/sampler/scan.h"

namespace oarlock::cpu {

template <class V>
struct ScanSteps {
  using F = typename V::F;
  static constexpr int kInserted = 32;  // a longer list is cheaper kept unsorted
  static constexpr float kNothing = -std::numeric_limits<float>::infinity();
  static constexpr float kLowest = std::numeric_limits<float>::lowest();

  // The vector at i, filled up with -inf behind the end.
  static F load(const float* x, int64_t count, int64_t i) {
    return i + V::kLanes <= count ? V::load(x + i) : V::load_head(x + i, int(count - i), V::set1(kNothing));
  }

  // Chunk by chunk, so that only the winning chunk is searched for the id.
  static Largest largest(const float* x, int64_t count) {
    Largest best{kNothing, 0, false};
    int64_t best_chunk = 0;
    uint32_t nan = 0;
    for (int64_t begin = 0; begin < count; begin += kScanChunk) {
      int64_t end = begin + kScanChunk < count ? begin + kScanChunk : count;
      F most[4] = {V::set1(kNothing), V::set1(kNothing), V::set1(kNothing), V::set1(kNothing)};
      int64_t i = begin;
      for (; i + 4 * V::kLanes <= end; i += 4 * V::kLanes) {
        F a = V::load(x + i), b = V::load(x + i + V::kLanes);
        F c = V::load(x + i + 2 * V::kLanes), d = V::load(x + i + 3 * V::kLanes);
        nan |= V::unordered(a, b) | V::unordered(c, d);
        most[0] = V::max(most[0], a);
        most[1] = V::max(most[1], b);
        most[2] = V::max(most[2], c);
        most[3] = V::max(most[3], d);
      }
      for (; i < end; i += V::kLanes) {
        F a = load(x, end, i);
        nan |= V::unordered(a, a);
        most[0] = V::max(most[0], a);
      }
      float value = V::reduce_max(V::max(V::max(most[0], most[1]), V::max(most[2], most[3])));
      if (value > best.value) {
        best.value = value;
        best_chunk = begin;
      }
    }
    best.nan = nan != 0;
    if (best.nan || best.value == kNothing) return best;
    int64_t id = best_chunk;
    while (x[id] != best.value) ++id;
    best.id = int32_t(id);
    return best;
  }

  static F log_weight(const LogWeights& row, int64_t i, int64_t end) {
    return V::mul(V::sub(load(row.x, end, i), V::set1(row.largest)), V::set1(row.factor));
  }

  static double sum(const LogWeights& row, float least, double* chunk_sums) {
    const F bound = V::set1(least < kLowest ? kLowest : least);
    double total = 0;
    for (int64_t begin = 0; begin < row.count; begin += kScanChunk) {
      int64_t end = begin + kScanChunk < row.count ? begin + kScanChunk : row.count;
      F sums[2] = {V::zero(), V::zero()};
      auto add = [&](F& to, int64_t i) {
        F t = log_weight(row, i, end);
        to = V::add(to, V::select(V::at_least(t, bound), V::exp2(t), V::zero()));
      };
      int64_t i = begin;
      for (; i + 2 * V::kLanes <= end; i += 2 * V::kLanes) {
        add(sums[0], i);
        add(sums[1], i + V::kLanes);
      }
      for (; i < end; i += V::kLanes) add(sums[0], i);
      double chunk = double(V::reduce_add(V::add(sums[0], sums[1])));
      if (chunk_sums != nullptr) chunk_sums[begin / kScanChunk] = chunk;
      total += chunk;
    }
    return total;
  }

  static void weights(const LogWeights& row, int64_t begin, int64_t end, float* out) {
    for (int64_t i = begin; i < end; i += V::kLanes) V::store(out + (i - begin), V::exp2(log_weight(row, i, end)));
  }

  static void gather(const LogWeights& row, float least, Candidates& out) {
    const F bound = V::set1(least < kLowest ? kLowest : least);
    out.count = 0;
    for (int64_t i = 0; i < row.count; i += V::kLanes) {
      F t = log_weight(row, i, row.count);
      uint32_t reached = V::at_least(t, bound);
      if (reached == 0) continue;
      alignas(64) float log_weights[V::kLanes], weights[V::kLanes];
      V::store(log_weights, t);
      V::store(weights, V::exp2(t));
      for (; reached != 0; reached &= reached - 1) {
        int lane = __builtin_ctz(reached);
        out.t[out.count] = log_weights[lane];
        out.weight[out.count] = weights[lane];
        out.id[out.count++] = int32_t(i + lane);
      }
    }
  }

  // Insertion into a short sorted list; once it is full few values pass the comparison with its last.
  static void top(const float* x, int64_t count, int wanted, int32_t* ids, float* values) {
    for (int place = 0; place < wanted; ++place) {
      ids[place] = -1;
      values[place] = kNothing;
    }
    if (wanted == 0) return;
    if (wanted > kInserted) return top_many(x, count, wanted, ids, values);
    for (int64_t i = 0; i < count; i += V::kLanes) {
      F v = load(x, count, i);
      uint32_t above = V::greater(v, V::set1(values[wanted - 1]));
      for (; above != 0; above &= above - 1) {
        int64_t id = i + __builtin_ctz(above);
        if (!(x[id] > values[wanted - 1])) continue;
        int place = wanted - 1;
        for (; place > 0 && x[id] > values[place - 1]; --place) {
          values[place] = values[place - 1];
          ids[place] = ids[place - 1];
        }
        values[place] = x[id];
        ids[place] = int32_t(id);
      }
    }
  }

  // The best so far lie in no order before as many that have passed the comparison with the worst of them since.
  static void top_many(const float* x, int64_t count, int wanted, int32_t* ids, float* values) {
    int32_t found[2 * kMostTop];
    int held = 0;
    float least = kNothing;
    auto better = [x](int32_t a, int32_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); };
    for (int64_t i = 0; i < count; i += V::kLanes) {
      uint32_t above = V::greater(load(x, count, i), V::set1(least));
      for (; above != 0; above &= above - 1) {
        found[held++] = int32_t(i + __builtin_ctz(above));
        if (held < 2 * wanted) continue;
        std::nth_element(found, found + wanted - 1, found + held, better);
        held = wanted;
        least = x[found[wanted - 1]];
        above &= V::greater(load(x, count, i), V::set1(least)) | (above & -above);
      }
    }
    std::sort(found, found + held, better);
    for (int place = 0; place < std::min(held, wanted); ++place) {
      ids[place] = found[place];
      values[place] = x[found[place]];
    }
  }

  static constexpr SamplerScans table() { return {largest, sum, weights, gather, top}; }
};

}  // namespace oarlock::cpu
