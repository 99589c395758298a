// Hands the tokens of a batch to the threads for rotation and cache writes.
#include "cpu/rope/rope.h"

#include "base/error.h"
#include "cpu/attention/kv_layout.h"

namespace oarlock::cpu {
namespace {

constexpr int kTokensAnItem = 8;

// Tokens of one value pair must be written by one thread, first the even one: a later item starts past a pair begun before.
int item_start(const Batch& batch, int token) {
  if (token <= 0) return 0;
  if (token >= batch.tokens) return batch.tokens;
  bool splits_pair = batch.slots[token] % 2 == 1 && batch.slots[token] == batch.slots[token - 1] + 1;
  return token + (splits_pair ? 1 : 0);
}

// The first token of a block clears the values behind the tokens that this batch writes to the block.
int clear_start(const Batch& batch, int token) {
  if (batch.slots[token] % kBlockTokens != 0) return kBlockTokens;
  int written = 1;
  while (written < kBlockTokens && token + written < batch.tokens &&
         batch.slots[token + written] == batch.slots[token] + written)
    ++written;
  return written;
}

}  // namespace

Rope::Rope(ThreadPool& pool, Isa isa) : pool_(pool), isa_(isa) {}

void Rope::rope_and_cache(Tensor qkv, DType cache_dtype, const AttentionShape& shape, const float* q_norm, const float* k_norm,
                          float epsilon, const float* rotary, KvLayer cache, const Batch& batch) const {
  require(qkv.dtype == DType::f32, "rope: qkv must be float32");
  require(cache_dtype == DType::bf16 || cache_dtype == DType::f32, "rope: the cache must be bf16 or float32");
  require(shape.head_dim % 16 == 0 && shape.head_dim <= kMaxHeadDim, "rope: head_dim must be a multiple of 16 up to 256, not ",
          shape.head_dim);
  const Isa isa = shape.head_dim % 32 == 0 ? isa_ : Isa::avx2;
  const RopeKernel kernel = isa >= Isa::avx512_bf16 ? avx512_bf16::rope_token
                            : isa >= Isa::avx512    ? avx512::rope_token
                                                    : avx2::rope_token;
  const int64_t element = size_of(cache_dtype);
  pool_.for_each_near((batch.tokens + kTokensAnItem - 1) / kTokensAnItem, [&](int64_t item, int) {
    int end = item_start(batch, int(item + 1) * kTokensAnItem);
    for (int t = item_start(batch, int(item) * kTokensAnItem); t < end; ++t) {
      int64_t block = batch.slots[t] / kBlockTokens;
      int64_t start = kv_head_start(block, shape.kv_heads, 0, shape.head_dim) * element;
      kernel({qkv.as<float>() + t * qkv.stride, cache_dtype, shape, q_norm, k_norm, epsilon,
              rotary + int64_t(batch.positions[t]) * shape.head_dim, static_cast<char*>(cache.keys) + start,
              static_cast<char*>(cache.values) + start, batch.slots[t] % kBlockTokens, clear_start(batch, t)});
    }
  });
}

}  // namespace oarlock::cpu
