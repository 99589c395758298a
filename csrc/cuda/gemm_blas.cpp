#include <string>

#include "base/error.h"
#include "cuda/gemm.h"

namespace oarlock::cuda {
namespace {

void check_blas(cublasStatus_t status, const char* call) {
  if (status != CUBLAS_STATUS_SUCCESS) throw DeviceError(concat("cuBLASLt: ", cublasLtGetStatusString(status), " from ", call));
}
#define OARLOCK_BLAS_CHECK(call) check_blas(call, #call)

cudaDataType_t cuda_type(DType type) { return type == DType::f32 ? CUDA_R_32F : type == DType::f16 ? CUDA_R_16F : CUDA_R_16BF; }

struct Layout {
  cublasLtMatrixLayout_t handle = nullptr;
  Layout(DType type, int64_t rows, int64_t cols, int64_t stride) {
    OARLOCK_BLAS_CHECK(cublasLtMatrixLayoutCreate(&handle, cuda_type(type), uint64_t(rows), uint64_t(cols), stride));
  }
  ~Layout() { cublasLtMatrixLayoutDestroy(handle); }
};

}  // namespace

BlasGemm::BlasGemm() { OARLOCK_BLAS_CHECK(cublasLtCreate(&handle_)); }
BlasGemm::~BlasGemm() { cublasLtDestroy(handle_); }

void BlasGemm::run(cudaStream_t stream, void* workspace, Tensor out, Tensor x, const void* w, int64_t n) {
  // cuBLAS counts in columns: out^T [n, rows] = w (transposed from its [k, n]) times x^T [k, rows].
  struct Operation {
    cublasLtMatmulDesc_t handle = nullptr;
    Operation() {
      OARLOCK_BLAS_CHECK(cublasLtMatmulDescCreate(&handle, CUBLAS_COMPUTE_32F, CUDA_R_32F));
      cublasOperation_t transpose = CUBLAS_OP_T;
      OARLOCK_BLAS_CHECK(cublasLtMatmulDescSetAttribute(handle, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)));
    }
    ~Operation() { cublasLtMatmulDescDestroy(handle); }
  } operation;
  Layout a(x.dtype, x.cols, n, x.cols), b(x.dtype, x.cols, x.rows, x.stride), c(out.dtype, n, x.rows, out.stride);

  const int64_t rounded = (x.rows + 63) / 64 * 64;
  const Key key{n, x.cols, rounded, int(x.dtype), int(out.dtype), x.stride, out.stride};
  auto found = algorithms_.find(key);
  if (found == algorithms_.end()) {
    Layout rounded_b(x.dtype, x.cols, rounded, x.stride), rounded_c(out.dtype, n, rounded, out.stride);
    cublasLtMatmulPreference_t preference;
    OARLOCK_BLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    size_t bytes = kWorkspaceBytes;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes));
    cublasLtMatmulHeuristicResult_t result;
    int count = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, operation.handle, a.handle, rounded_b.handle,
                                                           rounded_c.handle, rounded_c.handle, preference, 1, &result, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    check_blas(status, "cublasLtMatmulAlgoGetHeuristic");
    if (count == 0) throw DeviceError(concat("cuBLASLt has no algorithm for [", x.rows, ", ", x.cols, "] times ", n, " rows"));
    found = algorithms_.emplace(key, result.algo).first;
  }
  const float one = 1.f, zero = 0.f;
  OARLOCK_BLAS_CHECK(cublasLtMatmul(handle_, operation.handle, &one, w, a.handle, x.data, b.handle, &zero, out.data, c.handle,
                                    out.data, c.handle, &found->second, workspace, kWorkspaceBytes, stream));
}

}  // namespace oarlock::cuda
