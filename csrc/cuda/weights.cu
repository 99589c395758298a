#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "base/error.h"
#include "cuda/device.h"
#include "cuda/element.cuh"
#include "cuda/weights.h"

namespace oarlock::cuda {
namespace {

float half_at(const uint8_t* p) {
  f16 h;
  std::memcpy(&h, p, 2);
  return to_float(h);
}

// One row as float.
void read_row(float* to, const WeightPiece& piece, int64_t row) {
  const int64_t k = piece.k;
  const auto* bytes = static_cast<const uint8_t*>(piece.data);
  switch (piece.format) {
    case SourceFormat::f32:
      std::memcpy(to, static_cast<const float*>(piece.data) + row * k, size_t(k) * 4);
      return;
    case SourceFormat::f16:
      for (int64_t i = 0; i < k; ++i) to[i] = to_float(static_cast<const f16*>(piece.data)[row * k + i]);
      return;
    case SourceFormat::bf16:
      for (int64_t i = 0; i < k; ++i) to[i] = to_float(static_cast<const bf16*>(piece.data)[row * k + i]);
      return;
    case SourceFormat::q8_0:
      for (int64_t b = 0; b < k / 32; ++b) {
        const uint8_t* block = bytes + (row * (k / 32) + b) * 34;
        for (int i = 0; i < 32; ++i) to[b * 32 + i] = half_at(block) * float(int8_t(block[2 + i]));
      }
      return;
    case SourceFormat::q4_0:
    case SourceFormat::q4_1: {
      const bool with_minimum = piece.format == SourceFormat::q4_1;
      const int64_t size = with_minimum ? 20 : 18;
      for (int64_t b = 0; b < k / 32; ++b) {
        const uint8_t* block = bytes + (row * (k / 32) + b) * size;
        const float scale = half_at(block), minimum = with_minimum ? half_at(block + 2) : -8 * scale;
        const uint8_t* nibbles = block + (with_minimum ? 4 : 2);
        for (int i = 0; i < 16; ++i) {
          to[b * 32 + i] = scale * float(nibbles[i] & 15) + minimum;
          to[b * 32 + 16 + i] = scale * float(nibbles[i] >> 4) + minimum;
        }
      }
      return;
    }
  }
}

template <typename T>
__global__ void random_kernel(T* data, int64_t count, float limit, uint64_t seed) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    uint64_t x = (uint64_t(i) + seed) * 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93ull;
    x ^= x >> 32;
    data[i] = from_float<T>((float(uint32_t(x)) * 0x1p-31f - 1.f) * limit);
  }
}

}  // namespace

void convert_rows(void* to, DType dtype, const WeightPiece& piece, int64_t first, int64_t count) {
  std::vector<float> row(size_t(piece.k));
  for (int64_t r = 0; r < count; ++r) {
    read_row(row.data(), piece, first + r);
    if (dtype == DType::bf16) {
      bf16* out = static_cast<bf16*>(to) + r * piece.k;
      for (int64_t i = 0; i < piece.k; ++i) out[i] = to_bf16(row[size_t(i)]);
    } else {
      __half* out = static_cast<__half*>(to) + r * piece.k;
      for (int64_t i = 0; i < piece.k; ++i) out[i] = __float2half_rn(row[size_t(i)]);
    }
  }
}

void fill_random(cudaStream_t stream, void* data, DType dtype, int64_t count, float limit, uint64_t seed) {
  if (dtype == DType::bf16) {
    random_kernel<<<1024, 256, 0, stream>>>(static_cast<__nv_bfloat16*>(data), count, limit, seed);
  } else {
    random_kernel<<<1024, 256, 0, stream>>>(static_cast<__half*>(data), count, limit, seed);
  }
  OARLOCK_CUDA_CHECK(cudaGetLastError());
}

}  // namespace oarlock::cuda
