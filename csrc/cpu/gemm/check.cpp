// Checks the matrix products over random shapes: every instruction set that this machine runs against the plain reference,
// every row alone and on one thread against the whole call bit for bit, and the integer products of all instruction sets
// against each other bit for bit. Usage: gemm_check [shapes] [seed].
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/kernel.h"
#include "cpu/gemm/reference.h"

namespace oarlock::cpu {
namespace {

constexpr Isa kIsas[] = {Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16, Isa::amx};

struct Case {
  int64_t rows, n, k;
  SourceFormat source;
  WeightFormat format;
  DType compute;
  bool gated, bias, float_out;
};

const char* name_of(WeightFormat format) {
  constexpr const char* kNames[] = {"keep", "f32", "f16", "bf16", "int8", "int8_groups", "int4", "int4_groups"};
  return kNames[int(format)];
}

// Error allowed of |sum of products| magnitude: float32 sums, bf16 rounding of activations or weights, 15-bit activations.
double tolerance(const PackedWeight& w) {
  bool quantized = w.format != WeightFormat::f32 && w.format != WeightFormat::bf16;
  if (w.compute == DType::f32 || !quantized) return 2e-6;
  return w.kernel->input == Input::raised ? 4.5e-3 : 4e-6;  // bf16 weights; else the activations' scale adds its own term
}

// Whether x is rounded to 15-bit integers.
bool rounds_x(const Kernel& kernel) {
  return kernel.input == Input::digits || kernel.input == Input::words || kernel.input == Input::span_digits ||
         kernel.input == Input::span_words;
}

std::vector<uint8_t> random_source(const Case& c, std::mt19937& random) {
  std::normal_distribution<float> normal;
  auto f16_bits = [&](float value) {  // good enough for scales: truncation
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t((bits >> 16 & 0x8000) | (((bits & 0x7fffffff) - 0x38000000) >> 13));
  };
  std::vector<uint8_t> out;
  auto put16 = [&](uint16_t bits) {
    out.push_back(uint8_t(bits));
    out.push_back(uint8_t(bits >> 8));
  };
  for (int64_t i = 0; i < c.n; ++i) {
    for (int64_t k = 0; k < c.k; ++k) {
      if (c.source == SourceFormat::f32) {
        float value = normal(random) * 0.05f;
        out.insert(out.end(), reinterpret_cast<uint8_t*>(&value), reinterpret_cast<uint8_t*>(&value + 1));
      } else if (c.source == SourceFormat::bf16) {
        put16(to_bf16(normal(random) * 0.05f).bits);
      } else if (c.source == SourceFormat::f16) {
        put16(f16_bits(0.01f + std::fabs(normal(random))));
      } else if (k % kGroup == 0) {
        put16(f16_bits(0.001f * (1 + std::fabs(normal(random)))));
        if (c.source == SourceFormat::q4_1) put16(f16_bits(-0.01f * (1 + std::fabs(normal(random)))));
        for (int j = 0; j < (c.source == SourceFormat::q8_0 ? 32 : 16); ++j) out.push_back(uint8_t(random()));
      }
    }
  }
  return out;
}

struct Result {
  std::vector<float> values;  // of bf16 outputs widened
  bool operator==(const Result& other) const {
    return values.size() == other.values.size() &&
           std::memcmp(values.data(), other.values.data(), values.size() * sizeof(float)) == 0;
  }
};

Result run(ThreadPool& pool, Workspace& workspace, const Case& c, const PackedWeight& w, const std::vector<float>& x,
           int64_t first, int64_t rows, const float* bias) {
  int64_t cols = w.gated ? w.n / 2 : w.n, x_stride = c.k + 32, out_stride = cols + 5;
  std::vector<uint8_t> memory(rows * x_stride * 4 + 128), output(rows * out_stride * 4, 0xee);
  // At a cache line's start, as activations are, or just behind it.
  uint8_t* input = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) + first % 2 * 4;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < c.k; ++i) {
      float value = x[(first + r) * c.k + i];
      if (c.compute == DType::f32) {
        reinterpret_cast<float*>(input)[r * x_stride + i] = value;
      } else {
        reinterpret_cast<bf16*>(input)[r * x_stride + i] = to_bf16(value);
      }
    }
  }
  DType out_dtype = c.float_out ? DType::f32 : DType::bf16;
  Tensor xt{input, c.compute, rows, c.k, x_stride}, out{output.data(), out_dtype, rows, cols, out_stride};
  w.gated ? gated_linear(pool, workspace, out, xt, w) : linear(pool, workspace, out, xt, w, bias);
  Result result;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < cols; ++i)
      result.values.push_back(c.float_out ? out.as<float>()[r * out_stride + i] : to_float(out.as<bf16>()[r * out_stride + i]));
    for (int64_t i = cols * size_of(out_dtype); i < out_stride * size_of(out_dtype); ++i)
      require(output[r * out_stride * size_of(out_dtype) + i] == 0xee, "wrote past the row's end");
  }
  return result;
}

struct Checker {
  ThreadPool one{1}, two{2}, three{3};
  Workspace workspace;
  std::mt19937 random;
  std::map<std::string, double> worst;  // by kernel: error / tolerance
  int failures = 0;

  explicit Checker(unsigned seed) : random(seed) { workspace.reserve(320, 4096, 3); }

  void fail(const Case& c, Isa isa, const std::string& what) {
    std::printf("FAIL %s %s compute=%s rows=%ld n=%ld k=%ld source=%d gated=%d: %s\n", oarlock::name_of(isa), name_of(c.format),
                c.compute == DType::f32 ? "f32" : "bf16", long(c.rows), long(c.n), long(c.k), int(c.source), c.gated,
                what.c_str());
    ++failures;
  }

  void compare(const Case& c, Isa isa, const PackedWeight& w, const Result& got, const std::vector<float>& x,
               const std::vector<double>& expected, const std::vector<double>& magnitude) {
    int64_t cols = w.gated ? w.n / 2 : w.n;
    for (int64_t r = 0; r < c.rows; ++r) {
      float greatest = 0;
      for (int64_t i = 0; i < c.k; ++i) greatest = std::max(greatest, std::fabs(x[r * c.k + i]));
      for (int64_t i = 0; i < cols; ++i) {
        double want = expected[r * cols + i], allowed = tolerance(w) * magnitude[r * cols + i];
        // 15-bit activations: half a step of the row's greatest, over random signs.
        if (rounds_x(*w.kernel)) allowed += magnitude[r * cols + i] * 4e-4 * std::max(1.0f, greatest);
        allowed += std::fabs(want) * (c.float_out ? 1e-5 : 4.5e-3) + 1e-6;
        double error = std::fabs(got.values[r * cols + i] - want) / allowed;
        worst[w.kernel->name] = std::max(worst[w.kernel->name], error);
        if (!(error <= 1)) {
          return fail(c, isa,
                      concat("row ", r, " col ", i, ": ", got.values[r * cols + i], " for ", want, ", error ", error,
                             " of what is allowed"));
        }
      }
    }
  }

  void check(Case c) {
    std::vector<uint8_t> source = random_source(c, random), second = random_source(c, random);
    std::vector<WeightPiece> pieces = {{c.source, c.n, c.k, source.data()}};
    if (c.gated) pieces.push_back({c.source, c.n, c.k, second.data()});
    std::normal_distribution<float> normal;
    std::vector<float> x(c.rows * c.k), bias(c.n);
    for (float& value : x) value = to_float(to_bf16(normal(random)));
    for (int64_t r = 0; r < c.rows; r += 3) x[r * c.k + random() % c.k] *= 32;  // outliers, as real activations have
    for (int64_t r = 4; r < c.rows; r += 5)                                     // products below the least normal number
      for (int64_t i = 0; i < c.k; ++i) x[r * c.k + i] = to_float(to_bf16(std::ldexp(x[r * c.k + i], -124)));
    for (float& value : bias) value = normal(random);
    const float* with_bias = c.bias && !c.gated ? bias.data() : nullptr;

    std::vector<double> expected, magnitude;
    std::map<std::string, Result> integers;
    for (Isa isa : kIsas) {
      if (isa > machine_isa()) continue;
      auto w = pack_for(isa, pieces, c.format, c.gated, c.compute, two);
      if (expected.empty()) {
        expected.resize(c.rows * c.n);
        magnitude.resize(c.rows * c.n);
        reference_product(*w, x.data(), c.rows, with_bias, expected.data(), magnitude.data());
      }
      Result whole = run(two, workspace, c, *w, x, 0, c.rows, with_bias);
      compare(c, isa, *w, whole, x, expected, magnitude);
      if (!(run(one, workspace, c, *w, x, 0, c.rows, with_bias) == whole)) fail(c, isa, "one thread gives other bits than two");
      if (!(run(three, workspace, c, *w, x, 0, c.rows, with_bias) == whole)) fail(c, isa, "three threads give other bits");
      int64_t cols = c.n;
      for (int attempt = 0; attempt < 3; ++attempt) {
        int64_t first = random() % c.rows, rows = attempt == 0 ? 1 : 1 + random() % (c.rows - first);
        Result part = run(two, workspace, c, *w, x, first, rows, with_bias);
        if (std::memcmp(part.values.data(), whole.values.data() + first * cols, rows * cols * sizeof(float)) != 0)
          fail(c, isa, concat("rows ", first, " to ", first + rows, " alone give other bits"));
      }
      // A row that is not a number says so, and troubles no other.
      int64_t poisoned = random() % c.rows;
      std::vector<float> bad = x;
      bad[poisoned * c.k + random() % c.k] = std::nanf("");
      Result spread = run(two, workspace, c, *w, bad, 0, c.rows, with_bias);
      for (int64_t i = 0; i < cols; ++i)
        if (!std::isnan(spread.values[poisoned * cols + i])) return fail(c, isa, "NaN in a row of x got lost");
      std::copy_n(whole.values.begin() + poisoned * cols, cols, spread.values.begin() + poisoned * cols);
      if (!(spread == whole)) fail(c, isa, "NaN in a row of x changed another row");
      if (rounds_x(*w->kernel) && !(c.gated && isa == Isa::amx)) {  // whose silu is its own
        for (auto& [other, result] : integers)
          if (!(result == whole)) fail(c, isa, "integer products differ from those of " + other);
        integers[oarlock::name_of(isa)] = whole;
      }
    }
  }

  void check_random() {
    auto pick = [&](auto... values) {
      std::common_type_t<decltype(values)...> list[] = {values...};
      return list[random() % sizeof...(values)];
    };
    Case c;
    c.rows = pick(1, 1 + int(random() % 20), 1 + int(random() % 130), 16, 33, 300);
    c.n = pick(1 + int(random() % 200), 16, 64, 96, 1 + int(random() % 40));
    c.k = 32 * pick(1, 1 + int(random() % 40), 2, 3, 18, 64, 97 + int(random() % 31));
    c.source = pick(SourceFormat::f32, SourceFormat::bf16, SourceFormat::f16, SourceFormat::q8_0, SourceFormat::q4_0,
                    SourceFormat::q4_1);
    c.format = pick(WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8, WeightFormat::int8, WeightFormat::int8_groups,
                    WeightFormat::int4, WeightFormat::int4, WeightFormat::int4_groups, WeightFormat::keep);
    c.compute = pick(DType::bf16, DType::bf16, DType::f32);
    c.gated = random() % 4 == 0;
    c.bias = random() % 2;
    c.float_out = random() % 2;
    if (c.rows == 300) c.n = std::min<int64_t>(c.n, 48);
    check(c);
  }
};

int check_all(int shapes, unsigned seed) {
  Checker checker(seed);
  for (int i = 0; i < shapes && checker.failures < 20; ++i) checker.check_random();
  for (auto& [kernel, error] : checker.worst) std::printf("%-20s worst error %.2f of what is allowed\n", kernel.c_str(), error);
  for (Isa isa : kIsas)
    if (isa > machine_isa())
      std::printf("%s: not run, this machine goes up to %s\n", oarlock::name_of(isa), oarlock::name_of(machine_isa()));
  std::printf("%d shapes, %d failures\n", shapes, checker.failures);
  return checker.failures ? 1 : 0;
}

}  // namespace
}  // namespace oarlock::cpu

int main(int argc, char** argv) {
  int shapes = argc > 1 ? std::atoi(argv[1]) : 150;
  unsigned seed = argc > 2 ? unsigned(std::atoi(argv[2])) : 1;
  return oarlock::cpu::check_all(shapes, seed);
}
