// Talking to the CUDA runtime: errors with a cause, launches that overlap their predecessor, tensor maps.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "base/dtype.h"

namespace oarlock::cuda {

// DeviceError naming the call when it failed.
void check_call(cudaError_t status, const char* call);
#define OARLOCK_CUDA_CHECK(call) ::oarlock::cuda::check_call(call, #call)

struct Kernels;  // kernels.h

struct Device {
  int index = 0, multiprocessors = 0, major = 0, minor = 0;
  size_t shared_per_block = 0;
  const Kernels* kernels = nullptr;
};

// Selects the device for this thread and the kernels for it: Hopper's own where it is one, else the portable ones, which
// OARLOCK_CUDA_KERNELS=portable takes everywhere. DeviceError when there is no device, or none that this build is for.
Device open_device(int index);

// Whether kernels may start while their predecessor still runs: only Hopper's wait for it themselves. Set by open_device, for
// a process drives one kind of card.
extern bool launches_early;

// A [rows, cols] matrix of 16-bit elements, `stride` elements from row to row and a multiple of 64 columns. Its boxes are
// box_rows high and box_columns times 64 columns wide and land in shared memory as box_columns pieces of box_rows rows of 128
// bytes, in the 128-byte swizzle; what lies outside reads as zero. The address and 2 * stride must be multiples of 16.
CUtensorMap make_tensor_map(const void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride, int box_rows,
                            int box_columns);

// Launches a kernel that calls depend() before it touches what its predecessor made (see ptx.cuh), so that it may start early.
template <typename... Params, typename... Args>
void launch(cudaStream_t stream, void (*kernel)(Params...), dim3 grid, int threads, size_t shared, Args&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = launches_early ? 1 : 0;
  OARLOCK_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

// The same for a kernel whose grid is made of clusters of `cluster` blocks along x.
template <typename... Params, typename... Args>
void launch_clusters(cudaStream_t stream, void (*kernel)(Params...), dim3 grid, int cluster, int threads, size_t shared,
                     Args&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = unsigned(cluster);
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  OARLOCK_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

// Lets a kernel use `bytes` of dynamic shared memory.
template <typename Kernel>
void allow_shared(Kernel kernel, size_t bytes) {
  OARLOCK_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
}

}  // namespace oarlock::cuda
