// Decode attention where there are few sequences, and time goes by waiting. A cluster of eight blocks shares a sequence's KV
// head: each has every eighth block of keys and values, a warp 16 of its 64 keys, and what they sum is merged through
// distributed shared memory. Keys and values go straight to registers, before the kernel ahead of this one is done, and little
// shared memory is needed, so that the products on both sides have their rings on the same multiprocessors.
//
// A lane reads sixteen bytes, eight elements of a key or value: which of them are neighbours in a matrix instruction is free,
// as long as queries are read alike.
#include "cuda/attention_decode.cuh"
#include "cuda/attention_few.h"

namespace oarlock::cuda {
namespace {

using namespace decode;

constexpr int kParts = 8, kWarps = 4, kThreads = kWarps * 32;

// Eight-by-eight elements of 16 bits, transposed; a row is four lanes'.
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
  uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// A lane's part of 16 rows of keys or values: rows lane / 4 and 8 more, of every 32 columns the eight from lane % 4 * 8 on.
template <int D>
struct Rows {
  uint4 of[2][D / 32];

  __device__ __forceinline__ void load(const void* cache, int64_t place, int first, int lane) {
    const uint8_t* from = static_cast<const uint8_t*>(cache) + place * (D / 64 * kGroupBytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int c = 0; c < D / 32; ++c) {
        const int column = c * 32 + lane % 4 * 8;
        of[half][c] = __ldcg(reinterpret_cast<const uint4*>(from + column / 64 * kGroupBytes +
                                                            swizzled(first + lane / 4 + half * 8, column % 64 * 2)));
      }
    }
  }
};

__device__ __forceinline__ float largest_of_parts(float x) {
#pragma unroll
  for (int d = 1; d < kParts; d *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
  return x;
}
__device__ __forceinline__ float sum_of_parts(float x) {
#pragma unroll
  for (int d = 1; d < kParts; d *= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

template <typename T, int D, bool wide>
__global__ void __launch_bounds__(kThreads) few_kernel(const Params p) {
  constexpr int kStride = merge_stride(D);
  extern __shared__ float4 shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = p.heads / p.kv_heads;
  const int rank = int(blockIdx.x) % kParts, kv_head = int(blockIdx.x) / kParts % p.kv_heads;
  const int query = int(blockIdx.x) / kParts / p.kv_heads;
  float* merge = reinterpret_cast<float*>(shared);  // of the warps
  float* mine = merge + kWarps * group * kStride;   // of this block
  release_successor();
  const int context = query_of(p, query).context;
  if (context <= 0) return depend();

  const int begin = first_block(context, p.window), end = begin + block_count(context, p.window), in_block = warp * 16;
  const int32_t* table = p.block_tables + int64_t(query) * p.table_stride;
  auto place = [&](int block) { return int64_t(table[block]) * p.kv_heads + kv_head; };
  Rows<D> keys, values;
  int block = begin + rank;
  // All but the last block was written in earlier steps.
  const bool early = p.settled && (block + 1) * kBlockTokens < context;
  if (!early) depend();
  if (block < end) {
    keys.load(p.keys, place(block), in_block, lane);
    values.load(p.values, place(block), in_block, lane);
  }
  if (early) depend();

  State<T, D, wide> state;
  const T* q = static_cast<const T*>(p.q) + int64_t(p.query_starts[query]) * p.q_stride + kv_head * group * D;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + half * 8;
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
      uint4 words = make_uint4(0, 0, 0, 0);
      if ((wide || half == 0) && row < group) words = *reinterpret_cast<const uint4*>(q + row * D + c * 32 + lane % 4 * 8);
      state.q[c * 2][half] = words.x, state.q[c * 2][2 + half] = words.y;
      state.q[c * 2 + 1][half] = words.z, state.q[c * 2 + 1][2 + half] = words.w;
    }
  }
  for (; block < end; block += kParts) {
    const bool more = block + kParts < end;
    const int64_t next = more ? place(block + kParts) : 0;
    float score[2][4] = {};
    uint32_t weights[4];
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 k = keys.of[half][c];
        mma<T>(score[half], state.q[c * 2], k.x, k.y);
        mma<T>(score[half], state.q[c * 2 + 1], k.z, k.w);
      }
    }
    if (more) keys.load(p.keys, next, in_block, lane);
    weigh(p, state, score, weights, block * kBlockTokens + in_block, context, lane);
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
      const uint4 low = values.of[0][c], high = values.of[1][c];
      mma<T>(state.out[c * 4], weights, transposed(low.x), transposed(high.x));
      mma<T>(state.out[c * 4 + 1], weights, transposed(low.y), transposed(high.y));
      mma<T>(state.out[c * 4 + 2], weights, transposed(low.z), transposed(high.z));
      mma<T>(state.out[c * 4 + 3], weights, transposed(low.w), transposed(high.w));
    }
    if (more) values.load(p.values, next, in_block, lane);
  }

  // The warps' sums: a lane has eight neighbours of every 32 columns.
#pragma unroll
  for (int r = 0; r < (wide ? 2 : 1); ++r) {
    float sum = state.sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int row = lane / 4 + r * 8;
    if (row >= group) continue;
    float* to = merge + (warp * group + row) * kStride;
    if (lane % 4 == 0) to[D] = state.maximum[r], to[D + 1] = sum;
#pragma unroll
    for (int c = 0; c < D / 32; ++c) {
      const auto* v = &state.out[c * 4];
      float4* eight = reinterpret_cast<float4*>(to + c * 32 + lane % 4 * 8);
      eight[0] = make_float4(v[0][r * 2], v[0][r * 2 + 1], v[1][r * 2], v[1][r * 2 + 1]);
      eight[1] = make_float4(v[2][r * 2], v[2][r * 2 + 1], v[3][r * 2], v[3][r * 2 + 1]);
    }
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < group * D; i += kThreads) {
    const int row = i / D, column = i % D;
    float top = -INFINITY, total = 0, value = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, merge[(w * group + row) * kStride + D]);
    const float base = top == -INFINITY ? 0.f : top;  // of a block without keys
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* theirs = merge + (w * group + row) * kStride;
      const float weight = exp2f(theirs[D] - base);
      total += weight * theirs[D + 1];
      value += weight * theirs[column];
    }
    mine[row * kStride + column] = value;
    if (column == 0) mine[row * kStride + D] = top, mine[row * kStride + D + 1] = total;
  }

  // The blocks': each has an eighth of the columns, eight lanes four of them, and a lane what one of the blocks has.
  cluster_sync();
  const int quads = group * D / 4 / kParts;
  T* out = static_cast<T*>(p.out) + int64_t(p.query_starts[query]) * p.out_stride + kv_head * group * D;
  for (int first = warp * 4; first < quads; first += kWarps * 4) {
    const int quad = first + lane / kParts, part = lane % kParts, at = (rank * quads + min(quad, quads - 1)) * 4;
    const float* row = mine + at / D * kStride;
    const float4 v = load_from(reinterpret_cast<const float4*>(row + at % D), part);
    const float4 ends = load_from(reinterpret_cast<const float4*>(row + D), part);
    const float weight = exp2f(ends.x - largest_of_parts(ends.x)), scale = 1 / sum_of_parts(weight * ends.y);
    const float a = sum_of_parts(weight * v.x), b = sum_of_parts(weight * v.y), c = sum_of_parts(weight * v.z),
                d = sum_of_parts(weight * v.w);
    if (part == 0 && quad < quads) {
      *reinterpret_cast<uint2*>(out + at) = make_uint2(pack2<T>(a * scale, b * scale), pack2<T>(c * scale, d * scale));
    }
  }
  cluster_sync();  // nobody leaves while another may still read its sums
}

template <typename T, int D, bool wide>
void go(cudaStream_t stream, const Params& p) {
  const size_t bytes = size_t(kWarps + 1) * size_t(p.heads / p.kv_heads) * merge_stride(D) * sizeof(float);
  launch_clusters(stream, few_kernel<T, D, wide>, dim3(unsigned(p.queries * p.kv_heads * kParts)), kParts, kThreads, bytes, p);
}

template <typename T>
void by_shape(cudaStream_t stream, const Params& p, int head_dim) {
  const bool wide = p.heads / p.kv_heads > 8;
  if (head_dim == 64) return wide ? go<T, 64, true>(stream, p) : go<T, 64, false>(stream, p);
  wide ? go<T, 128, true>(stream, p) : go<T, 128, false>(stream, p);
}

}  // namespace

bool are_few(const AttentionShape& shape, const Batch& batch) {
  return batch.groups == 0 && (shape.head_dim == 64 || shape.head_dim == 128) &&
         batch.sequences * shape.kv_heads <= kFewItems && batch.block_table_stride <= kFewBlocks;
}

void attend_few(cudaStream_t stream, const AttentionWorkspace& workspace, Tensor out, Tensor qkv, const AttentionShape& shape,
                KvLayer cache, const Batch& batch) {
  Params p = params_of(workspace, out, qkv, shape, cache, batch);
  p.settled = batch.settled;
  if (qkv.dtype == DType::bf16) return by_shape<__nv_bfloat16>(stream, p, shape.head_dim);
  by_shape<__half>(stream, p, shape.head_dim);
}

}  // namespace oarlock::cuda
