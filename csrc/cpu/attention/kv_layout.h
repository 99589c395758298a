// Where a key or value lies in the paged cache. One layout serves every instruction set.
//
// A layer's cache is [block][kv head][64 tokens x D], keys and values apart.
//   bf16     keys   [D/2][64 tokens][2]: pairs along D, so that 16 keys' pairs are one B operand of a bf16 dot product
//            values [32 token pairs][D][2]: pairs along the tokens, for the product with the probabilities
//   float32  keys   [D][64 tokens]
//            values [64 tokens][D]
// Writing the first token of a block zeroes the values of the tokens after it, so that a masked token's value is always
// finite: its probability is exactly 0, and 0 * NaN of the block's former owner would be NaN. Keys need no such care,
// because masked scores are replaced, not computed with. So tokens of a block are written in order, and a token that is
// written again takes those after it in its block with it (but the last: token 63 harms none).
#pragma once

#include <cstdint>

#include "base/ops.h"

namespace oarlock::cpu {

// Elements from the start of the cache to those of (block, head).
inline int64_t kv_head_start(int64_t block, int kv_heads, int head, int head_dim) {
  return (block * kv_heads + head) * kBlockTokens * int64_t(head_dim);
}

// Elements from there to one component of one token, `token` in [0, 64).
inline int64_t key_element(DType dtype, int token, int component) {
  return dtype == DType::f32 ? int64_t(component) * kBlockTokens + token
                             : (int64_t(component / 2) * kBlockTokens + token) * 2 + component % 2;
}
inline int64_t value_element(DType dtype, int head_dim, int token, int component) {
  return dtype == DType::f32 ? int64_t(token) * head_dim + component
                             : (int64_t(token / 2) * head_dim + component) * 2 + token % 2;
}

// Bytes of one block of one layer, keys and values together.
inline int64_t kv_block_bytes(DType dtype, int kv_heads, int head_dim) {
  return 2 * kv_heads * kBlockTokens * int64_t(head_dim) * size_of(dtype);
}

}  // namespace oarlock::cpu
