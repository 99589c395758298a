// The table of portable kernels, and whether the build has them for a device.
#include "cuda/kernels.h"
#include "cuda/portable/portable.h"

namespace oarlock::cuda {
namespace portable {
namespace {

__global__ void probe() {}

bool product(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x, const float* bias,
             After after, bool batch_invariant) {
  if (!streams(weight) || (x.rows > kStreamMaxRows && !batch_invariant)) return false;
  stream_products(stream_product, stream, device, weight, out, x, bias, after);
  return true;
}

}  // namespace

bool built_for_this_device() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe);
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();  // it is answered here and must not surface in a later call
    return false;
  }
  check_call(status, "cudaFuncGetAttributes");
  return true;
}

}  // namespace portable

const Kernels kPortableKernels = {
    "portable",
    portable::product,
    [](cudaStream_t, const Device&, const StreamWeight&, Tensor, Tensor, const Channel&) { return false; },
    portable::attend_shared,
    portable::attend_decode,
    portable::attend_each,
    portable::attend_prefill,
    portable::sample,
    portable::sampler_scratch};

}  // namespace oarlock::cuda
