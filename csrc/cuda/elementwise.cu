// Embedding, RMS norm with the residual sum, gathering, SiLU gate: one pass over memory each, sums in float.
#include "base/error.h"
#include "cuda/device.h"
#include "cuda/element.cuh"
#include "cuda/elementwise.h"
#include "cuda/ptx.cuh"

namespace oarlock::cuda {
namespace {

template <typename R, typename T>
__global__ void embed_kernel(R* residual, int64_t stride, const T* table, int64_t rows, int cols, const int32_t* ids,
                             int64_t first) {
  release_successor();
  depend();
  const int64_t row = ids[blockIdx.x] - first;
  const bool here = row >= 0 && row < rows;
  R* to = residual + blockIdx.x * stride;
  for (int c = threadIdx.x * 8; c < cols; c += blockDim.x * 8) {
    float v[8] = {};
    if (here) load8(v, table + row * cols + c);
    store8(to + c, v);
  }
}

__global__ void feed_tokens_kernel(int32_t* ids, const int32_t* sources, const int32_t* drawn, int count) {
  release_successor();
  depend();
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count && sources[i] >= 0) ids[i] = drawn[sources[i]];
}

// One block a row. Each thread keeps its part of the row, up to kVectors times eight elements, in registers between the sum of
// squares and the scaling.
constexpr int kNormThreads = 256, kNormVectors = 4, kNormColumns = kNormThreads * kNormVectors * 8;

template <typename T, typename R, typename E, int kVectors>
__global__ void __launch_bounds__(kNormThreads)
    add_norm_kernel(T* out, int64_t out_stride, R* residual, int64_t stride, const E* delta, int64_t delta_stride,
                    const float* weight, float epsilon, int cols) {
  __shared__ float sums[kNormThreads / 32];
  release_successor();
  float v[kVectors][8], w[kVectors][8], sum = 0;
  const int thread = threadIdx.x;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int c = (i * kNormThreads + thread) * 8;
    if (c < cols) load8(w[i], weight + c);
  }
  depend();
  out += blockIdx.x * out_stride;
  residual += blockIdx.x * stride;
  if (delta != nullptr) delta += blockIdx.x * delta_stride;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int c = (i * kNormThreads + thread) * 8;
    if (c >= cols) continue;
    load8(v[i], residual + c);
    if (delta != nullptr) {
      float d[8];
      load8(d, delta + c);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[i][j] = as_float(from_float<R>(v[i][j] + d[j]));
      store8(residual + c, v[i]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += v[i][j] * v[i][j];
  }
  sum = warp_sum(sum);
  if (thread % 32 == 0) sums[thread / 32] = sum;
  __syncthreads();
  const float scale = rsqrtf(warp_sum(thread % 32 < kNormThreads / 32 ? sums[thread % 32] : 0.f) / float(cols) + epsilon);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int c = (i * kNormThreads + thread) * 8;
    if (c >= cols) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) v[i][j] *= scale * w[i][j];
    store8(out + c, v[i]);
  }
}

template <typename R>
__global__ void gather_kernel(R* out, int64_t out_stride, const R* x, int64_t stride, int cols, const int32_t* rows) {
  release_successor();
  depend();
  const R* from = x + int64_t(rows[blockIdx.x]) * stride;
  for (int c = threadIdx.x * 8; c < cols; c += blockDim.x * 8) {
    float v[8];
    load8(v, from + c);
    store8(out + blockIdx.x * out_stride + c, v);
  }
}

template <typename T>
__global__ void gate_kernel(T* out, int64_t out_stride, const T* x, int64_t stride, int out_cols) {
  release_successor();
  depend();
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
  if (c >= out_cols) return;
  float g[8], u[8];
  load8(g, x + blockIdx.x * stride + c * 2);
  load8(u, x + blockIdx.x * stride + c * 2 + 8);
#pragma unroll
  for (int j = 0; j < 8; ++j) g[j] = silu(g[j]) * u[j];
  store8(out + blockIdx.x * out_stride + c, g);
}

template <typename T>
__global__ void bias_kernel(T* x, int64_t stride, const float* bias, int cols) {
  release_successor();
  depend();
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
  if (c >= cols) return;
  float v[8], b[8];
  load8(v, x + blockIdx.x * stride + c);
  load8(b, bias + c);
#pragma unroll
  for (int j = 0; j < 8; ++j) v[j] += b[j];
  store8(x + blockIdx.x * stride + c, v);
}

// Calls f with a null pointer of the type.
template <typename F>
void by_type(DType type, F&& f) {
  switch (type) {
    case DType::bf16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
    case DType::f16:
      return f(static_cast<__half*>(nullptr));
    case DType::f32:
      return f(static_cast<float*>(nullptr));
    default:
      throw InvalidArgument(concat("no kernel takes elements of type ", int(type)));
  }
}

int row_threads(int64_t cols, int most) {
  const int64_t threads = (cols / 8 + 31) / 32 * 32;
  return int(threads < most ? threads : most);
}

}  // namespace

void feed_tokens(cudaStream_t stream, int32_t* ids, const int32_t* sources, const int32_t* drawn, int count) {
  launch(stream, feed_tokens_kernel, dim3(unsigned(count + 255) / 256), 256, 0, ids, sources, drawn, count);
}

void embed(cudaStream_t stream, Tensor residual, const void* table, DType table_dtype, int64_t rows, const int32_t* ids,
           int64_t first) {
  require(residual.cols % 8 == 0, "rows of ", residual.cols, " columns are no multiple of 8");
  by_type(residual.dtype, [&](auto* r) {
    by_type(table_dtype, [&](auto* t) {
      using R = std::remove_pointer_t<decltype(r)>;
      using T = std::remove_pointer_t<decltype(t)>;
      launch(stream, embed_kernel<R, T>, dim3(unsigned(residual.rows)), row_threads(residual.cols, 512), 0, residual.as<R>(),
             residual.stride, static_cast<const T*>(table), rows, int(residual.cols), ids, first);
    });
  });
}

void add_norm(cudaStream_t stream, Tensor out, Tensor residual, const Tensor* delta, const float* weight, float epsilon) {
  require(out.cols % 8 == 0 && out.cols <= kNormColumns, "a norm takes rows of a multiple of 8 up to ", kNormColumns,
          " columns, not ", out.cols);
  require(delta == nullptr || delta->dtype == residual.dtype || delta->dtype == out.dtype,
          "what is added must have the type of the residual or of the result");
  by_type(out.dtype, [&](auto* t) {
    by_type(residual.dtype, [&](auto* r) {
      using T = std::remove_pointer_t<decltype(t)>;
      using R = std::remove_pointer_t<decltype(r)>;
      auto go = [&](auto* e) {
        using E = std::remove_pointer_t<decltype(e)>;
        auto with = [&](auto kernel) {
          launch(stream, kernel, dim3(unsigned(out.rows)), kNormThreads, 0, out.as<T>(), out.stride, residual.as<R>(),
                 residual.stride, delta ? static_cast<const E*>(delta->data) : nullptr, delta ? delta->stride : 0, weight,
                 epsilon, int(out.cols));
        };
        // The short form is quicker as long as blocks need not share multiprocessors.
        const bool few = out.rows <= 64 && out.cols <= kNormColumns / 2;
        few ? with(add_norm_kernel<T, R, E, kNormVectors / 2>) : with(add_norm_kernel<T, R, E, kNormVectors>);
      };
      delta == nullptr || delta->dtype == residual.dtype ? go(r) : go(t);
    });
  });
}

void gather_rows(cudaStream_t stream, Tensor out, Tensor x, const int32_t* rows) {
  require(out.dtype == x.dtype && out.cols % 8 == 0, "gathered rows must be of one type and a multiple of 8 columns");
  by_type(x.dtype, [&](auto* r) {
    using R = std::remove_pointer_t<decltype(r)>;
    launch(stream, gather_kernel<R>, dim3(unsigned(out.rows)), row_threads(out.cols, 512), 0, out.as<R>(), out.stride,
           static_cast<const R*>(x.data), x.stride, int(out.cols), rows);
  });
}

void gate(cudaStream_t stream, Tensor out, Tensor x) {
  by_type(x.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const int threads = row_threads(out.cols, 256);
    launch(stream, gate_kernel<T>, dim3(unsigned(out.rows), unsigned((out.cols / 8 + threads - 1) / threads)), threads, 0,
           out.as<T>(), out.stride, static_cast<const T*>(x.data), x.stride, int(out.cols));
  });
}

void add_bias(cudaStream_t stream, Tensor x, const float* bias) {
  by_type(x.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const int threads = row_threads(x.cols, 256);
    launch(stream, bias_kernel<T>, dim3(unsigned(x.rows), unsigned((x.cols / 8 + threads - 1) / threads)), threads, 0,
           x.as<T>(), x.stride, bias, int(x.cols));
  });
}

}  // namespace oarlock::cuda
