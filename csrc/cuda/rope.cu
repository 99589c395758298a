// Rotation of queries and keys by position, optionally after a norm of each head, and the write of keys and values to the
// cache.
#include "base/error.h"
#include "cuda/device.h"
#include "cuda/element.cuh"
#include "cuda/elementwise.h"
#include "cuda/ptx.cuh"

namespace oarlock::cuda {
namespace {

struct RopeParams {
  void *qkv, *keys, *values;
  const float* sums;  // what is read, or null: qkv
  const float *q_norm, *k_norm, *rotary;
  const int32_t *positions, *slots;
  int64_t stride, sums_stride;
  int heads, kv_heads, tokens;
  float epsilon;
};

// D / 16 threads a head, each with eight elements of the first half and the eight they are paired with in the second.
constexpr int kRopeThreads = 128;

template <typename T, int D, bool from_sums>
__global__ void __launch_bounds__(kRopeThreads) rope_kernel(const RopeParams p) {
  constexpr int kLanes = D / 16, kHeadsPerBlock = kRopeThreads / kLanes;
  release_successor();
  const int token = blockIdx.x, head = blockIdx.y * kHeadsPerBlock + threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const bool active = head < p.heads + 2 * p.kv_heads;
  const int64_t position = p.positions[token], slot = p.slots[token];
  depend();
  const int64_t at = (active ? head : 0) * D + lane * 8;  // of the first eight in the row
  T* row = static_cast<T*>(p.qkv) + token * p.stride + at;
  const bool is_query = head < p.heads, is_value = head >= p.heads + p.kv_heads;
  float a[8], b[8], cosine[8], sine[8];  // all on their way at once
  if constexpr (from_sums) {
    const float* sums = p.sums + token * p.sums_stride + at;
    load8(a, sums);
    load8(b, sums + D / 2);
  } else {
    load8(a, row);
    load8(b, row + D / 2);
  }
  load8(cosine, p.rotary + position * D + lane * 8);
  load8(sine, p.rotary + position * D + D / 2 + lane * 8);
  if (!is_value) {
    const float* norm = is_query ? p.q_norm : p.k_norm;
    if (norm != nullptr) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += a[i] * a[i] + b[i] * b[i];
#pragma unroll
      for (int d = kLanes / 2; d > 0; d /= 2) sum += __shfl_xor_sync(__activemask(), sum, d);
      const float scale = rsqrtf(sum / D + p.epsilon);
      float wa[8], wb[8];
      load8(wa, norm + lane * 8);
      load8(wb, norm + D / 2 + lane * 8);
#pragma unroll
      for (int i = 0; i < 8; ++i) a[i] *= scale * wa[i], b[i] *= scale * wb[i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float x = a[i], y = b[i];
      a[i] = x * cosine[i] - y * sine[i];
      b[i] = y * cosine[i] + x * sine[i];
    }
  }
  if (!active || (!is_query && slot < 0)) return;  // a padding row has no place in the cache
  if (is_query) {
    store8(row, a);
    store8(row + D / 2, b);
    return;
  }
  if (is_value) {
    // What is not a number stays with its own request: blocks are used again, and rows beyond a context weigh 0, not nothing.
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i] = isfinite(a[i]) ? a[i] : 0.f, b[i] = isfinite(b[i]) ? b[i] : 0.f;
  }
  const int kv_head = is_value ? head - p.heads - p.kv_heads : head - p.heads;
  const int64_t block = slot / kBlockTokens;
  const uint32_t in_block = uint32_t(slot % kBlockTokens);
  uint8_t* to = static_cast<uint8_t*>(is_value ? p.values : p.keys) + (block * p.kv_heads + kv_head) * (D / 64) * kGroupBytes;
  auto place = [&](int column) {  // of the first of eight elements
    return reinterpret_cast<T*>(to + column / 64 * kGroupBytes + swizzled(in_block, uint32_t(column % 64) * 2));
  };
  store8(place(lane * 8), a);
  store8(place(D / 2 + lane * 8), b);
}

template <typename T>
void run(cudaStream_t stream, const RopeParams& p, int head_dim) {
  const int heads = p.heads + 2 * p.kv_heads;
  auto go = [&](auto kernel, int lanes) {
    const int per_block = kRopeThreads / lanes;
    launch(stream, kernel, dim3(unsigned(p.tokens), unsigned((heads + per_block - 1) / per_block)), kRopeThreads, 0, p);
  };
  const bool from_sums = p.sums != nullptr;
  if (head_dim == 64) return go(from_sums ? rope_kernel<T, 64, true> : rope_kernel<T, 64, false>, 4);
  if (head_dim == 128) return go(from_sums ? rope_kernel<T, 128, true> : rope_kernel<T, 128, false>, 8);
  throw InvalidArgument(concat("heads of ", head_dim, " elements have no CUDA kernel; 64 and 128 have"));
}

}  // namespace

void rope_and_cache(cudaStream_t stream, Tensor qkv, const float* sums, const AttentionShape& shape, const float* q_norm,
                    const float* k_norm, float epsilon, const float* rotary, KvLayer cache, const Batch& batch) {
  RopeParams p = {};
  p.qkv = qkv.data;
  p.keys = cache.keys;
  p.values = cache.values;
  p.sums = sums;
  p.q_norm = q_norm;
  p.k_norm = k_norm;
  p.rotary = rotary;
  p.positions = batch.positions;
  p.slots = batch.slots;
  p.stride = qkv.stride;
  p.sums_stride = qkv.cols;
  p.heads = shape.heads;
  p.kv_heads = shape.kv_heads;
  p.tokens = batch.tokens;
  p.epsilon = epsilon;
  if (qkv.dtype == DType::bf16) return run<__nv_bfloat16>(stream, p, shape.head_dim);
  run<__half>(stream, p, shape.head_dim);
}

}  // namespace oarlock::cuda
