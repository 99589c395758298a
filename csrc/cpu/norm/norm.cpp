// Hands the rows of a norm to the threads.
#include "cpu/norm/norm.h"

#include <algorithm>

#include "base/error.h"

namespace oarlock::cpu {
namespace {

constexpr int64_t kElementsAnItem = 16 * 1024;  // about 2 us of work; fewer are not worth waking a thread

char* row_address(const Tensor& tensor, int64_t row) {
  return static_cast<char*>(tensor.data) + row * tensor.stride * size_of(tensor.dtype);
}

void require_float(const Tensor& tensor, const char* name) {
  require(tensor.dtype == DType::f32 || tensor.dtype == DType::bf16, "add_norm: ", name, " must be float32 or bf16");
}

}  // namespace

Norm::Norm(ThreadPool& pool, Isa isa) : pool_(pool), isa_(isa) {}

void Norm::add_norm(Tensor out, Tensor residual, const Tensor* delta, const float* weight, float epsilon) const {
  require(residual.dtype == DType::f32, "add_norm: residual must be float32");
  require(residual.cols % 16 == 0, "add_norm: columns must be a multiple of 16, not ", residual.cols);
  require_float(out, "out");
  if (delta != nullptr) require_float(*delta, "delta");
  NormKernel kernel = isa_ >= Isa::avx512_bf16 ? avx512_bf16::add_norm_row
                      : isa_ >= Isa::avx512    ? avx512::add_norm_row
                                               : avx2::add_norm_row;
  int64_t rows_an_item = std::max<int64_t>(1, kElementsAnItem / std::max<int64_t>(1, residual.cols));
  int64_t items = (residual.rows + rows_an_item - 1) / rows_an_item;
  pool_.for_each_near(items, [&](int64_t item, int) {
    int64_t end = std::min(residual.rows, (item + 1) * rows_an_item);
    for (int64_t r = item * rows_an_item; r < end; ++r) {
      kernel({reinterpret_cast<float*>(row_address(residual, r)), delta ? row_address(*delta, r) : nullptr,
              delta ? delta->dtype : DType::f32, row_address(out, r), out.dtype, weight, residual.cols, epsilon});
    }
  });
}

}  // namespace oarlock::cpu
