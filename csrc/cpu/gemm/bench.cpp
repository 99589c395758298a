// Times the matrix products at real models' shapes and sets them against this machine's floors, measured first: the time to
// read the weights from memory, or to compute at the matrix unit's rate (bf16 units for every format but f32), whichever is
// longer. Usage: gemm_bench [seconds a figure] [rows ...].
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "base/error.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/kernel.h"
#include "cpu/gemm/machine.h"
#include "cpu/gemm/memory.h"

namespace oarlock::cpu {
namespace {

using Clock = std::chrono::steady_clock;

struct Shape {
  const char* name;
  int64_t n, k;
  bool gated;
};

constexpr Shape kShapes[] = {
    {"135m qkv", 960, 576, false},       {"135m o", 576, 576, false},      {"135m gate_up", 3072, 576, true},
    {"135m down", 576, 1536, false},     {"135m head", 49152, 576, false}, {"1.1b qkv", 2560, 2048, false},
    {"1.1b gate_up", 11264, 2048, true}, {"1.1b down", 2048, 5632, false},
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

struct Floors {
  double bandwidth, bf16, int8, f32;
};

Floors measure_floors(ThreadPool& pool) {
  auto of = [&](auto measure) {
    std::vector<double> samples;
    for (int i = 0; i < 7; ++i) samples.push_back(measure());
    return median(samples);
  };
  Floors floors;
  floors.bandwidth = of([&] { return read_bandwidth(pool, 0.1); });
  floors.bf16 = of([&] { return matrix_rate(MatrixKind::bf16, pool, 0.1); });
  floors.int8 = of([&] { return matrix_rate(MatrixKind::int8, pool, 0.1); });
  floors.f32 = of([&] { return matrix_rate(MatrixKind::f32, pool, 0.1); });
  std::printf("%s, %d threads: read %.1f GB/s; bf16 %.0f GFLOP/s, int8 %.0f GOP/s, f32 %.0f GFLOP/s (operands from L1)\n",
              oarlock::name_of(selected_isa()), pool.size(), floors.bandwidth / 1e9, floors.bf16 / 1e9, floors.int8 / 1e9,
              floors.f32 / 1e9);
  return floors;
}

// Copies of a weight that together exceed the caches, so that each product reads its weights from memory.
std::vector<std::unique_ptr<PackedWeight>> copies_of(const Shape& shape, WeightFormat format, ThreadPool& pool) {
  int64_t rows = shape.gated ? shape.n / 2 : shape.n;
  std::mt19937 random(1);
  std::vector<uint16_t> values(shape.n * shape.k);
  for (uint16_t& value : values) value = uint16_t(0x3c00 + random() % 0x200 + (random() & 1) * 0x8000);  // +-0.008..0.06
  std::vector<WeightPiece> pieces = {{SourceFormat::bf16, rows, shape.k, values.data()}};
  if (shape.gated) pieces.push_back({SourceFormat::bf16, rows, shape.k, values.data() + rows * shape.k});
  constexpr int64_t kBeyondCaches = 600 << 20;
  std::vector<std::unique_ptr<PackedWeight>> copies;
  DType compute = format == WeightFormat::f32 ? DType::f32 : DType::bf16;
  copies.push_back(pack(pieces, format, shape.gated, compute, pool));
  while (copies[0]->bytes * int64_t(copies.size()) < kBeyondCaches) {
    auto copy = std::make_unique<PackedWeight>(*copies[0]);
    Piece piece = allocate_piece(copy->bytes);
    std::copy(copies[0]->data, copies[0]->data + copy->bytes, piece.data);
    copy->memory = piece.block;
    copy->data = piece.data;
    copies.push_back(std::move(copy));
  }
  return copies;
}

void bench(const Floors& floors, ThreadPool& pool, const Shape& shape, WeightFormat format, const std::vector<int64_t>& rows,
           double seconds) {
  auto copies = copies_of(shape, format, pool);
  const PackedWeight& w = *copies[0];
  int64_t most = *std::max_element(rows.begin(), rows.end()), cols = shape.gated ? shape.n / 2 : shape.n;
  Workspace workspace;
  workspace.reserve(most, shape.k, pool.size());
  std::vector<uint32_t> x(most * shape.k), y(most * cols);
  std::mt19937 random(2);
  for (uint32_t& value : x) value = w.compute == DType::f32 ? 0x3f800000 + random() % 4096 : 0x3f803f80 + random() % 64;
  std::printf("%-13s %-18s", shape.name, w.kernel->name);
  for (int64_t count : rows) {
    Tensor xt{x.data(), w.compute, count, shape.k, shape.k}, out{y.data(), w.compute, count, cols, cols};
    std::vector<double> times;
    Clock::time_point start = Clock::now();
    for (size_t i = 0; i < 3 || std::chrono::duration<double>(Clock::now() - start).count() < seconds; ++i) {
      const PackedWeight& weight = *copies[i % copies.size()];
      Clock::time_point begin = Clock::now();
      shape.gated ? gated_linear(pool, workspace, out, xt, weight) : linear(pool, workspace, out, xt, weight, nullptr);
      times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
    double time = median(times), work = 2.0 * double(count) * double(shape.n) * double(shape.k);
    double rate = w.compute == DType::f32 ? floors.f32 : floors.bf16;
    if (w.kernel->input == Input::digits || w.kernel->input == Input::span_digits) rate = floors.int8 / 2;  // two digits of x
    double read = double(w.bytes) / floors.bandwidth, compute = work / rate, floor = std::max(read, compute);
    std::printf(" | %4ld: %7.1f us %s%3.0f%%", long(count), time * 1e6, read > compute ? "read " : "unit ", 100 * floor / time);
  }
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace
}  // namespace oarlock::cpu

int main(int argc, char** argv) {
  using namespace oarlock;
  using namespace oarlock::cpu;
  double seconds = argc > 1 ? std::atof(argv[1]) : 0.1;
  std::vector<int64_t> rows;
  for (int i = 2; i < argc; ++i) rows.push_back(std::atol(argv[i]));
  if (rows.empty()) rows = {1, 8, 32, 64, 128, 1024};
  try {
    ThreadPool pool(int(std::max(1u, std::thread::hardware_concurrency())));
    Floors floors = measure_floors(pool);
    for (WeightFormat format : {WeightFormat::bf16, WeightFormat::int8, WeightFormat::int8_groups, WeightFormat::int4,
                                WeightFormat::int4_groups, WeightFormat::f32})
      for (const Shape& shape : kShapes) bench(floors, pool, shape, format, rows, seconds);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gemm_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
