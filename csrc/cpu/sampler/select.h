// The least set of best candidates that reaches a count or a mass, without sorting them all.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/sampler/scan.h"

namespace oarlock::cpu {

// Better candidates come first; candidates lie in order of id, so the lower index wins a tie.
struct Better {
  const float* t;
  bool operator()(int32_t a, int32_t b) const { return t[a] > t[b] || (t[a] == t[b] && a < b); }
};

// Reorders order[0, count) so that its first n entries are the best, n the fewest whose weights sum to at least `needed`;
// returns n (count when they never do). A quickselect that keeps the sum of what lies before.
template <typename WeightOf>
int64_t select_prefix(int32_t* order, int64_t count, Better better, WeightOf&& weight, double needed) {
  int64_t begin = 0, end = count;
  double before = 0;
  while (end - begin > 24) {
    int32_t first = order[begin], middle = order[begin + (end - begin) / 2], last = order[end - 1];
    if (better(middle, first)) std::swap(first, middle);
    if (better(last, middle)) middle = better(last, first) ? first : last;
    int32_t* split = std::partition(order + begin, order + end, [&](int32_t i) { return better(i, middle); });
    int64_t at = split - order;
    double mass = before;
    for (int64_t i = begin; i < at; ++i) mass += weight(order[i]);
    if (mass >= needed) {
      end = at;
      continue;
    }
    std::swap(*std::find(split, order + end, middle), *split);
    mass += weight(middle);
    if (mass >= needed) return at + 1;
    before = mass;
    begin = at + 1;
  }
  std::sort(order + begin, order + end, better);
  for (int64_t i = begin; i < end; ++i) {
    before += weight(order[i]);
    if (before >= needed) return i + 1;
  }
  return end;
}

}  // namespace oarlock::cpu
