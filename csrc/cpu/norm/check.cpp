// Checks the norm and the row gather on every instruction set that this machine runs: random shapes and dtypes within a
// tolerance of the plain reference, and each row bit for bit the same alone, on one thread. Usage: norm_check [shapes] [seed].
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/elementwise/gather.h"
#include "cpu/norm/norm.h"

namespace oarlock::cpu {
namespace {

constexpr Isa kIsas[] = {Isa::avx2, Isa::avx512, Isa::avx512_bf16};

struct Rows {
  std::vector<char> data;
  Tensor tensor;

  Rows(DType dtype, int64_t rows, int64_t cols, int64_t stride) : data(size_t(rows * stride * size_of(dtype))) {
    tensor = {data.data(), dtype, rows, cols, stride};
  }
  Rows(const Rows& other) : data(other.data), tensor(other.tensor) { tensor.data = data.data(); }
  Rows& operator=(const Rows&) = delete;
  float get(int64_t r, int64_t c) const {
    int64_t at = r * tensor.stride + c;
    return tensor.dtype == DType::f32 ? tensor.as<float>()[at] : to_float(tensor.as<bf16>()[at]);
  }
  void set(int64_t r, int64_t c, float value) {
    int64_t at = r * tensor.stride + c;
    if (tensor.dtype == DType::f32) {
      tensor.as<float>()[at] = value;
    } else {
      tensor.as<bf16>()[at] = to_bf16(value);
    }
  }
};

double error_of(const Rows& got, const Rows& expected) {
  double error = 0, largest = 0;
  for (int64_t r = 0; r < got.tensor.rows; ++r) {
    for (int64_t c = 0; c < got.tensor.cols; ++c) {
      error = std::max(error, double(std::abs(got.get(r, c) - expected.get(r, c))));
      largest = std::max(largest, double(std::abs(expected.get(r, c))));
    }
  }
  return error / largest;
}

bool check_shape(std::mt19937& random) {
  std::normal_distribution<float> normal;
  const int64_t rows = 1 + random() % 70, cols = 16 * (1 + random() % 80);
  const bool has_delta = random() % 2 == 0;
  const DType delta_dtype = random() % 2 ? DType::f32 : DType::bf16, out_dtype = random() % 2 ? DType::f32 : DType::bf16;
  Rows residual(DType::f32, rows, cols, cols + 8), delta(delta_dtype, rows, cols, cols + 16), out(out_dtype, rows, cols, cols);
  std::vector<float> weight(static_cast<size_t>(cols));
  for (float& w : weight) w = normal(random);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      residual.set(r, c, normal(random));
      delta.set(r, c, normal(random));
    }
  }
  Rows expected_residual = residual, expected = out;
  auto row_of = [](Rows& rows_of, int64_t r) {
    return static_cast<void*>(rows_of.data.data() + r * rows_of.tensor.stride * size_of(rows_of.tensor.dtype));
  };
  for (int64_t r = 0; r < rows; ++r) {
    reference::add_norm_row({static_cast<float*>(row_of(expected_residual, r)), has_delta ? row_of(delta, r) : nullptr,
                             delta_dtype, row_of(expected, r), out_dtype, weight.data(), cols, 1e-5f});
  }
  bool good = true;
  for (Isa isa : kIsas) {
    if (isa > machine_isa()) continue;
    ThreadPool pool(3), alone(1);
    Rows sum = residual, got = out, sum_alone = residual, got_alone = out;
    Norm(pool, isa).add_norm(got.tensor, sum.tensor, has_delta ? &delta.tensor : nullptr, weight.data(), 1e-5f);
    for (int64_t r = 0; r < rows; ++r) {
      auto row_tensor = [&](Rows& of) { return Tensor{row_of(of, r), of.tensor.dtype, 1, cols, of.tensor.stride}; };
      Tensor one = row_tensor(delta);
      Norm(alone, isa).add_norm(row_tensor(got_alone), row_tensor(sum_alone), has_delta ? &one : nullptr, weight.data(), 1e-5f);
    }
    double error = error_of(got, expected), allowed = out_dtype == DType::f32 ? 2e-6 : 4e-3;
    bool same = got.data == got_alone.data && sum.data == sum_alone.data && sum.data == expected_residual.data;
    if (error <= allowed && same) continue;
    good = false;
    std::printf("FAIL %s %lld x %lld: error %.2e of %.1e allowed, bits %s\n", name_of(isa), static_cast<long long>(rows),
                static_cast<long long>(cols), error, allowed, same ? "same" : "DIFFER");
  }
  std::vector<int32_t> wanted;
  for (int i = 0; i < 40; ++i) wanted.push_back(int32_t(random() % uint64_t(rows)));
  Rows gathered(delta_dtype, 40, cols, cols);
  ThreadPool pool(2);
  gather_rows(pool, gathered.tensor, delta.tensor, wanted.data());
  for (int64_t i = 0; i < 40; ++i) {
    if (std::memcmp(row_of(gathered, i), row_of(delta, wanted[size_t(i)]), size_t(cols * size_of(delta_dtype))) == 0) continue;
    std::printf("FAIL gather_rows, row %lld\n", static_cast<long long>(i));
    return false;
  }
  return good;
}

}  // namespace
}  // namespace oarlock::cpu

int main(int argc, char** argv) {
  using namespace oarlock;
  const int shapes = argc > 1 ? std::atoi(argv[1]) : 60;
  std::mt19937 random(argc > 2 ? uint32_t(std::atoi(argv[2])) : 1u);
  for (Isa isa : cpu::kIsas)
    if (isa > machine_isa())
      std::printf("norm: %s is not checked: this machine goes up to %s\n", name_of(isa), name_of(machine_isa()));
  int failed = 0;
  for (int number = 0; number < shapes; ++number) failed += cpu::check_shape(random) ? 0 : 1;
  std::printf("norm: %d of %d shapes agree\n", shapes - failed, shapes);
  return failed == 0 ? 0 : 1;
}
