// Rotation and cache writes, plain: what the fast versions are compared with.
#include <cmath>
#include <vector>

#include "cpu/attention/kv_layout.h"
#include "cpu/rope/rope.h"

namespace oarlock::cpu::reference {
namespace {

void set(void* data, DType dtype, int64_t i, float value) {
  if (dtype == DType::f32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<bf16*>(data)[i] = to_bf16(value);
  }
}

std::vector<float> rotated(const RopeToken& token, int64_t start, const float* norm) {
  int head_dim = token.shape.head_dim, half = head_dim / 2;
  std::vector<float> x(static_cast<size_t>(head_dim)), out(x.size());
  double squares = 0;
  for (int i = 0; i < head_dim; ++i) {
    x[size_t(i)] = token.qkv[start + i];
    squares += double(x[size_t(i)]) * double(x[size_t(i)]);
  }
  if (norm != nullptr) {
    double inverse = 1.0 / std::sqrt(squares / head_dim + double(token.epsilon));
    for (int i = 0; i < head_dim; ++i) x[size_t(i)] = float(double(x[size_t(i)]) * inverse * double(norm[i]));
  }
  for (int i = 0; i < half; ++i) {
    float cosine = token.rotary[i], sine = token.rotary[half + i], low = x[size_t(i)], high = x[size_t(half + i)];
    out[size_t(i)] = low * cosine - high * sine;
    out[size_t(half + i)] = high * cosine + low * sine;
  }
  return out;
}

}  // namespace

void rope_token(const RopeToken& token) {
  const int head_dim = token.shape.head_dim, heads = token.shape.heads, kv_heads = token.shape.kv_heads;
  for (int head = 0; head < heads; ++head) {
    int64_t start = int64_t(head) * head_dim;
    std::vector<float> query = rotated(token, start, token.q_norm);
    for (int i = 0; i < head_dim; ++i) set(token.qkv, token.dtype, start + i, query[size_t(i)]);
  }
  for (int head = 0; head < kv_heads; ++head) {
    int64_t block = kv_head_start(0, kv_heads, head, head_dim);
    std::vector<float> key = rotated(token, int64_t(heads + head) * head_dim, token.k_norm);
    for (int i = 0; i < head_dim; ++i) {
      set(token.keys, token.dtype, block + key_element(token.dtype, token.offset, i), key[size_t(i)]);
      for (int later = token.clear_from; later < kBlockTokens; ++later) {
        set(token.values, token.dtype, block + value_element(token.dtype, head_dim, later, i), 0.0f);
      }
      float value = token.qkv[int64_t(heads + kv_heads + head) * head_dim + i];
      set(token.values, token.dtype, block + value_element(token.dtype, head_dim, token.offset, i), value);
    }
  }
}

}  // namespace oarlock::cpu::reference
