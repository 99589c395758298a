// Products x w^T for many rows: cuBLASLt with algorithms chosen once.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <tuple>

#include "base/ops.h"

namespace oarlock::cuda {

class BlasGemm {
 public:
  BlasGemm();
  ~BlasGemm();
  BlasGemm(const BlasGemm&) = delete;
  BlasGemm& operator=(const BlasGemm&) = delete;

  static constexpr size_t kWorkspaceBytes = 32 << 20;
  // out = x w^T; w is [n, k] row-major of x's dtype. The algorithm is chosen once for each (n, k, rows rounded up, out dtype).
  void run(cudaStream_t stream, void* workspace, Tensor out, Tensor x, const void* w, int64_t n);

 private:
  using Key = std::tuple<int64_t, int64_t, int64_t, int, int, int64_t, int64_t>;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, cublasLtMatmulAlgo_t> algorithms_;
};

}  // namespace oarlock::cuda
