// What the checks share: random numbers, device arrays, and comparison with a plain float reference.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "cuda/ops_cuda.h"

namespace oarlock::cuda::check {

inline std::mt19937& generator() {
  static std::mt19937 instance(20240607);
  return instance;
}
inline int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator()); }
inline float normal(float scale) { return std::normal_distribution<float>(0, scale)(generator()); }
inline std::vector<float> normals(size_t count, float scale) {
  std::vector<float> out(count);
  for (float& x : out) x = normal(scale);
  return out;
}

inline float round_to(DType type, float x) {
  if (type == DType::bf16) return to_float(to_bf16(x));
  if (type == DType::f16) return __half2float(__float2half_rn(x));
  return x;
}
inline void round_all(std::vector<float>& values, DType type) {
  for (float& x : values) x = round_to(type, x);
}

// Values of one dtype on the device. Lives until the process ends: a check is short.
inline void* to_device(const void* data, size_t bytes) {
  void* memory = nullptr;
  OARLOCK_CUDA_CHECK(cudaMalloc(&memory, bytes + 256));
  OARLOCK_CUDA_CHECK(cudaMemcpy(memory, data, bytes, cudaMemcpyHostToDevice));
  OARLOCK_CUDA_CHECK(cudaDeviceSynchronize());  // a copy from pageable memory may still be on its way
  return memory;
}
template <typename T>
T* to_device(const std::vector<T>& values) {
  return static_cast<T*>(to_device(values.data(), values.size() * sizeof(T)));
}
inline std::vector<uint8_t> encode(const std::vector<float>& values, DType type) {
  std::vector<uint8_t> bytes(values.size() * size_t(size_of(type)));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == DType::f32) reinterpret_cast<float*>(bytes.data())[i] = values[i];
    if (type == DType::bf16) reinterpret_cast<bf16*>(bytes.data())[i] = to_bf16(values[i]);
    if (type == DType::f16) reinterpret_cast<__half*>(bytes.data())[i] = __float2half_rn(values[i]);
  }
  return bytes;
}
inline Tensor tensor(const std::vector<float>& values, DType type, int64_t rows, int64_t cols) {
  std::vector<uint8_t> bytes = encode(values, type);
  return {to_device(bytes.data(), bytes.size()), type, rows, cols, cols};
}
// Every byte 0xff: not a number in each of the types, so what a kernel leaves out shows.
inline Tensor poisoned(DType type, int64_t rows, int64_t cols) {
  std::vector<uint8_t> bytes(size_t(rows * cols * size_of(type)), 0xff);
  return {to_device(bytes.data(), bytes.size()), type, rows, cols, cols};
}
inline std::vector<float> to_host(const Tensor& t) {
  std::vector<uint8_t> bytes(size_t(t.rows * t.stride * size_of(t.dtype)));
  OARLOCK_CUDA_CHECK(cudaMemcpy(bytes.data(), t.data, bytes.size(), cudaMemcpyDeviceToHost));
  std::vector<float> out;
  for (int64_t r = 0; r < t.rows; ++r) {
    for (int64_t c = 0; c < t.cols; ++c) {
      const size_t i = size_t(r * t.stride + c);
      if (t.dtype == DType::f32) out.push_back(reinterpret_cast<float*>(bytes.data())[i]);
      if (t.dtype == DType::bf16) out.push_back(to_float(reinterpret_cast<bf16*>(bytes.data())[i]));
      if (t.dtype == DType::f16) out.push_back(__half2float(reinterpret_cast<__half*>(bytes.data())[i]));
    }
  }
  return out;
}

struct Report {
  int cases = 0, failures = 0;
  bool quick = false;  // few cases only

  void expect(bool good, const std::string& what) {
    ++cases;
    if (good) return;
    ++failures;
    std::printf("FAILED %s\n", what.c_str());
  }
  // |got - want| / |want| over all elements; NaN fails.
  void close(const std::vector<float>& got, const std::vector<double>& want, double limit, const std::string& what) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      difference += (got[i] - want[i]) * (got[i] - want[i]);
      size += want[i] * want[i];
    }
    const double error = std::sqrt(difference / (size > 0 ? size : 1));
    expect(got.size() == want.size() && error <= limit, what + ": error " + std::to_string(error));
  }
};

// Error that rounding to the type alone may cause.
inline double tolerance(DType type) { return type == DType::bf16 ? 5e-3 : type == DType::f16 ? 8e-4 : 2e-5; }
inline const char* name(DType type) { return type == DType::bf16 ? "bf16" : type == DType::f16 ? "f16" : "f32"; }

void check_linear(CudaOps& ops, Report& report);
void check_elementwise(CudaOps& ops, Report& report);
void check_attention(CudaOps& ops, Report& report);
void check_shared_prefixes(CudaOps& ops, Report& report);
void check_each_token(CudaOps& ops, Report& report);  // of a batch-invariant ops
void check_sampler(CudaOps& ops, Report& report);

}  // namespace oarlock::cuda::check
