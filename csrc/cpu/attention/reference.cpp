// Attention, plain: every score, a softmax in double, the weighted sum. What the fast versions are compared with.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/attention/attention.h"
#include "cpu/attention/kv_layout.h"

namespace oarlock::cpu::reference {
namespace {

float get(const void* data, DType dtype, int64_t i) {
  return dtype == DType::f32 ? static_cast<const float*>(data)[i] : to_float(static_cast<const bf16*>(data)[i]);
}

}  // namespace

void attention(Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache, const Batch& batch) {
  const int head_dim = shape.head_dim, group = shape.heads / shape.kv_heads;
  for (int s = 0; s < batch.sequences; ++s) {
    const int32_t* table = batch.block_tables + int64_t(s) * batch.block_table_stride;
    for (int t = batch.query_starts[s]; t < batch.query_starts[s + 1]; ++t) {
      int last = batch.positions[t], first = shape.window > 0 ? std::max(0, last - shape.window + 1) : 0;
      for (int head = 0; head < shape.heads; ++head) {
        std::vector<double> weights;
        auto block_start = [&](int key) {
          return kv_head_start(table[key / kBlockTokens], shape.kv_heads, head / group, head_dim);
        };
        double largest = -INFINITY, sum = 0;
        for (int key = first; key <= last; ++key) {
          double score = 0;
          for (int i = 0; i < head_dim; ++i) {
            int64_t at = block_start(key) + key_element(qkv.dtype, key % kBlockTokens, i);
            score +=
                double(get(qkv.data, qkv.dtype, t * qkv.stride + head * head_dim + i)) * double(get(cache.keys, qkv.dtype, at));
          }
          weights.push_back(score * double(shape.scale));
          largest = std::max(largest, weights.back());
        }
        for (double& weight : weights) sum += weight = std::exp(weight - largest);
        for (int i = 0; i < head_dim; ++i) {
          double total = 0;
          for (int key = first; key <= last; ++key) {
            int64_t at = block_start(key) + value_element(qkv.dtype, head_dim, key % kBlockTokens, i);
            total += weights[size_t(key - first)] * double(get(cache.values, qkv.dtype, at));
          }
          int64_t at = t * out.stride + head * head_dim + i;
          if (out.dtype == DType::f32) {
            out.as<float>()[at] = float(total / sum);
          } else {
            out.as<bf16>()[at] = to_bf16(float(total / sum));
          }
        }
      }
    }
  }
}

}  // namespace oarlock::cpu::reference
