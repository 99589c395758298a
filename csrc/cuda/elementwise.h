// The kernels between the products: embedding, norms, gathering, activation, and rotation with the write to the KV cache.
#pragma once

#include <cuda_runtime.h>

#include "base/ops.h"

namespace oarlock::cuda {

// Where the element types of residual and activations are free, each pair of {bf16, f16} with itself or float is compiled.
// residual[t] = row ids[t] - first of a table of `rows` rows; zeros for an id that is not in it.
void embed(cudaStream_t stream, Tensor residual, const void* table, DType table_dtype, int64_t rows, const int32_t* ids,
           int64_t first);
// ids[i] = drawn[sources[i]] where that is not negative.
void feed_tokens(cudaStream_t stream, int32_t* ids, const int32_t* sources, const int32_t* drawn, int count);
void add_norm(cudaStream_t stream, Tensor out, Tensor residual, const Tensor* delta, const float* weight, float epsilon);
void gather_rows(cudaStream_t stream, Tensor out, Tensor x, const int32_t* rows);
// x's columns alternate, eight gates and eight ups; out has half as many.
void gate(cudaStream_t stream, Tensor out, Tensor x);
// x += bias, row by row.
void add_bias(cudaStream_t stream, Tensor x, const float* bias);
// sums: q, k and v before they are rounded, in contiguous rows of qkv's width, where they are not read from qkv; q goes there.
void rope_and_cache(cudaStream_t stream, Tensor qkv, const float* sums, const AttentionShape& shape, const float* q_norm,
                    const float* k_norm, float epsilon, const float* rotary, KvLayer cache, const Batch& batch);

// ---- the KV cache ----
// A block of one head is 64 rows of head_dim elements, cut into column groups of 64 elements; a group is 64 rows of 128
// bytes in the 128-byte swizzle. So a block lands in shared memory by plain copies in the form that the matrix units read.
constexpr int kGroupBytes = kBlockTokens * 128;

}  // namespace oarlock::cuda
