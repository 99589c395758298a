// The row of norm.h written once for every vector width.
#pragma once

#include <cmath>

#include "cpu/norm/norm.h"

namespace oarlock::cpu {

// Two passes: sum and square (writing the residual back), then scale. The row stays in the first-level cache between them.
template <class V, class Delta, class Out>
void add_norm_row_typed(const NormRow& row) {
  using F = typename V::F;
  constexpr int kStep = V::kLanes;
  const Delta* delta = static_cast<const Delta*>(row.delta);
  auto sum_at = [&](int64_t i) {
    F x = V::load(row.residual + i);
    if (delta != nullptr) {
      x = V::add(x, V::load(delta + i));
      V::store(row.residual + i, x);
    }
    return x;
  };
  F even = V::zero(), odd = V::zero();
  int64_t i = 0;
  for (; i + 2 * kStep <= row.columns; i += 2 * kStep) {
    F x = sum_at(i), y = sum_at(i + kStep);
    even = V::fma(x, x, even);
    odd = V::fma(y, y, odd);
  }
  if (i < row.columns) {
    F x = sum_at(i);
    even = V::fma(x, x, even);
  }
  float sum = V::reduce_add(V::add(even, odd));
  F inverse = V::set1(1.0f / std::sqrt(sum / float(row.columns) + row.epsilon));
  Out* out = static_cast<Out*>(row.out);
  for (i = 0; i < row.columns; i += kStep) {
    V::store(out + i, V::mul(V::mul(V::load(row.residual + i), inverse), V::load(row.weight + i)));
  }
}

template <class V>
void add_norm_row_any(const NormRow& row) {
  bool wide_delta = row.delta_dtype == DType::f32, wide_out = row.out_dtype == DType::f32;
  if (wide_delta && wide_out) return add_norm_row_typed<V, float, float>(row);
  if (wide_delta) return add_norm_row_typed<V, float, bf16>(row);
  if (wide_out) return add_norm_row_typed<V, bf16, float>(row);
  add_norm_row_typed<V, bf16, bf16>(row);
}

}  // namespace oarlock::cpu
