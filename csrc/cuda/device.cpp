#include "cuda/device.h"

#include <cstdlib>
#include <string>

#include "base/error.h"
#include "cuda/kernels.h"
#include "cuda/portable/portable.h"

namespace oarlock::cuda {

void check_call(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw DeviceError(concat(cudaGetErrorString(status), " (", cudaGetErrorName(status), ") from ", call));
}

bool launches_early = false;

Device open_device(int index) {
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) throw DeviceError(concat("no usable CUDA device: ", cudaGetErrorString(status)));
  require(index >= 0 && index < count, "device ", index, " was asked for, and there are ", count);
  OARLOCK_CUDA_CHECK(cudaSetDevice(index));
  cudaDeviceProp properties;
  OARLOCK_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  auto refuse = [&](const char* why) {
    throw DeviceError(concat("device ", index, " (", properties.name, ") has compute capability ", properties.major, ".",
                             properties.minor, "; ", why));
  };
  if (properties.major < 8) refuse("8.0 (Ampere) is the oldest that has kernels");
  const char* wanted = std::getenv("OARLOCK_CUDA_KERNELS");
  const std::string kernels = wanted == nullptr ? "auto" : wanted;
  require(kernels == "auto" || kernels == "portable", "OARLOCK_CUDA_KERNELS=", kernels, " is not one of auto, portable");
  const Kernels* chosen = &kPortableKernels;
#ifdef OARLOCK_CUDA_HOPPER
  if (properties.major == 9 && kernels == "auto") chosen = &kHopperKernels;
#endif
  if (!portable::built_for_this_device()) {
    refuse("this build has kernels for " OARLOCK_CUDA_ARCHITECTURES " alone (cmake -DOARLOCK_CUDA_ARCHITECTURES=...)");
  }
  launches_early = chosen != &kPortableKernels;
  return {index, properties.multiProcessorCount, properties.major, properties.minor, properties.sharedMemPerBlockOptin, chosen};
}

CUtensorMap make_tensor_map(const void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride, int box_rows,
                            int box_columns) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  // The driver's library is found at run time, so that these kernels link on a machine without one.
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    OARLOCK_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) throw DeviceError("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<Encode>(entry);
  }();
  CUtensorMap map;
  // Three dimensions: within 64 columns, rows, and groups of 64 columns.
  cuuint64_t sizes[3] = {64, cuuint64_t(rows), cuuint64_t(cols / 64)}, strides[2] = {cuuint64_t(stride) * 2, 128};
  cuuint32_t box[3] = {64, cuuint32_t(box_rows), cuuint32_t(box_columns)}, steps[3] = {1, 1, 1};
  CUresult status = encode(&map, dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3,
                           const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                           CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw DeviceError(concat("no tensor map for [", rows, ", ", cols, "] with stride ", stride, " (error ", int(status), ")"));
  }
  return map;
}

}  // namespace oarlock::cuda
