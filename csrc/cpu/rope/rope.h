// Rotary position embedding of queries and keys, with the optional per-head norm before it, and the write of keys and
// values into the paged cache (attention/kv_layout.h).
#pragma once

#include "base/isa.h"
#include "base/ops.h"
#include "base/threads.h"

namespace oarlock::cpu {

constexpr int kMaxHeadDim = 256;

class Rope {
 public:
  explicit Rope(ThreadPool& pool, Isa isa = selected_isa());

  // As Ops::rope_and_cache. qkv is float32, so that each value is rounded once, on its way to the cache; the rotated queries
  // go to the start of their row in the cache's dtype, bf16 or f32 (queries() views them). head_dim is a multiple of 16 up to
  // 256. What is written depends on the token alone, not on the chunk that it came in. Two tokens of one batch never share a
  // slot.
  void rope_and_cache(Tensor qkv, DType cache_dtype, const AttentionShape& shape, const float* q_norm, const float* k_norm,
                      float epsilon, const float* rotary, KvLayer cache, const Batch& batch) const;

 private:
  ThreadPool& pool_;
  const Isa isa_;
};

// The rotated queries that rope_and_cache left in the rows of qkv.
inline Tensor queries(Tensor qkv, DType cache_dtype, const AttentionShape& shape) {
  return {qkv.data, cache_dtype, qkv.rows, int64_t(shape.heads) * shape.head_dim, qkv.stride * 4 / size_of(cache_dtype)};
}

// One token's work.
struct RopeToken {
  float* qkv;   // heads*D | kv_heads*D | kv_heads*D
  DType dtype;  // of queries and cache as written
  AttentionShape shape;
  const float* q_norm;
  const float* k_norm;
  float epsilon;
  const float* rotary;  // of this token's position
  void* keys;           // of this token's block, first kv head
  void* values;
  int offset;      // of the token in its block
  int clear_from;  // values of tokens [clear_from, 64) of the block are zeroed; 64 = none
};
using RopeKernel = void (*)(const RopeToken&);

namespace reference {
void rope_token(const RopeToken& token);
}
namespace avx2 {
void rope_token(const RopeToken& token);
}
namespace avx512 {
void rope_token(const RopeToken& token);  // head_dim a multiple of 32
}
namespace avx512_bf16 {
void rope_token(const RopeToken& token);  // head_dim a multiple of 32
}

}  // namespace oarlock::cpu
