// The token of rope.h written once for every vector width; D/2 is a multiple of the lanes.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/rope/rope.h"

namespace oarlock::cpu {

// out[D] = rotation of the (normed) head x[D], rounded to E; they may not overlap.
template <class V, class E>
void rotate_head(const float* x, E* out, int head_dim, const float* norm, float epsilon, const float* rotary) {
  using F = typename V::F;
  const int half = head_dim / 2;
  float scale = 1;
  if (norm != nullptr) {
    F squares = V::zero();
    for (int i = 0; i < head_dim; i += V::kLanes) {
      F value = V::load(x + i);
      squares = V::fma(value, value, squares);
    }
    scale = 1.0f / std::sqrt(V::reduce_add(squares) / float(head_dim) + epsilon);
  }
  for (int i = 0; i < half; i += V::kLanes) {
    F low = V::load(x + i), high = V::load(x + half + i);
    if (norm != nullptr) {
      low = V::mul(V::mul(low, V::set1(scale)), V::load(norm + i));
      high = V::mul(V::mul(high, V::set1(scale)), V::load(norm + half + i));
    }
    F cosine = V::load(rotary + i), sine = V::load(rotary + half + i);
    V::store(out + i, V::sub(V::mul(low, cosine), V::mul(high, sine)));
    V::store(out + half + i, V::fma(low, sine, V::mul(high, cosine)));
  }
}

// Key components lie 64 tokens apart: a scatter of single elements (pairs in bf16).
template <class Word>
void scatter_key(const void* key, void* block, int words, int offset) {
  const char* from = static_cast<const char*>(key);
  char* to = static_cast<char*>(block) + offset * sizeof(Word);
  for (int i = 0; i < words; ++i) std::memcpy(to + i * kBlockTokens * sizeof(Word), from + i * sizeof(Word), sizeof(Word));
}

// The first token of a pair zeroes the second's place, which is always still to come.
template <class V>
void store_value(const float* value, bf16* block, int head_dim, int offset) {
  bf16* row = block + int64_t(offset / 2) * head_dim * 2;
  for (int i = 0; i < head_dim; i += V::kLanes) {
    if (offset % 2 == 0) {
      V::store_pair_first(row + 2 * i, V::load(value + i));
    } else {
      V::store_pair_second(row + 2 * i, V::load(value + i));
    }
  }
}

template <class V>
void store_value(const float* value, float* block, int head_dim, int offset) {
  std::memcpy(block + int64_t(offset) * head_dim, value, size_t(head_dim) * 4);
}

template <class V, class E>
void rope_token_typed(const RopeToken& token) {
  const int head_dim = token.shape.head_dim, heads = token.shape.heads, kv_heads = token.shape.kv_heads;
  const int64_t block = int64_t(kBlockTokens) * head_dim;
  // An even clear_from only: an odd one's pair was zeroed by the token before it.
  const int clear_from = sizeof(E) == 2 ? (token.clear_from + 1) / 2 * 2 : token.clear_from;
  const float* row = token.qkv;
  E* query = reinterpret_cast<E*>(token.qkv);
  alignas(64) E rotated[kMaxHeadDim];
  // A query is never longer than the floats it came from, so it overwrites none that are still to be read.
  for (int head = 0; head < heads; ++head, row += head_dim, query += head_dim) {
    rotate_head<V>(row, rotated, head_dim, token.q_norm, token.epsilon, token.rotary);
    std::memcpy(query, rotated, size_t(head_dim) * sizeof(E));
  }
  for (int head = 0; head < kv_heads; ++head, row += head_dim) {
    rotate_head<V>(row, rotated, head_dim, token.k_norm, token.epsilon, token.rotary);
    E* keys = static_cast<E*>(token.keys) + head * block;
    scatter_key<uint32_t>(rotated, keys, head_dim * int(sizeof(E)) / 4, token.offset);
  }
  for (int head = 0; head < kv_heads; ++head, row += head_dim) {
    E* values = static_cast<E*>(token.values) + head * block;
    if (clear_from < kBlockTokens) {
      std::memset(values + int64_t(clear_from) * head_dim, 0, size_t((kBlockTokens - clear_from) * head_dim) * sizeof(E));
    }
    store_value<V>(row, values, head_dim, token.offset);
  }
}

template <class V>
void rope_token_any(const RopeToken& token) {
  if (token.dtype == DType::f32) return rope_token_typed<V, float>(token);
  rope_token_typed<V, bf16>(token);
}

}  // namespace oarlock::cpu
