#include "cpu/gemm/machine.h"

#include <chrono>
#include <cstring>
#include <random>
#include <vector>

#include "base/dtype.h"
#include "base/isa.h"
#include "cpu/gemm/machine_kernels.h"
#include "cpu/gemm/memory.h"

namespace oarlock::cpu {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

RateLoop rate_loop(MatrixKind kind, Isa isa) {
  if (kind == MatrixKind::bf16 && isa == Isa::amx) return rate_bf16_amx;
  if (kind == MatrixKind::bf16 && isa == Isa::avx512_bf16) return rate_bf16_avx512;
  if (kind == MatrixKind::int8 && isa == Isa::amx) return rate_int8_amx;
  if (kind == MatrixKind::int8 && isa >= Isa::avx512_vnni) return rate_int8_vnni;
  if (kind == MatrixKind::int8) return rate_int8_avx2;
  return isa >= Isa::avx512 ? rate_f32_avx512 : rate_f32_avx2;
}

// Numbers as a model has them. Zeros would flatter: multiplying them takes so little power that the clock rises.
void random_operands(MatrixKind kind, uint8_t* operands, size_t bytes) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (size_t at = 0; at < bytes;) {
    float value = normal(random);
    bf16 half = to_bf16(value);
    int8_t code = int8_t(value * 32);
    if (kind == MatrixKind::f32) std::memcpy(operands + at, &value, 4);
    if (kind == MatrixKind::bf16) std::memcpy(operands + at, &half, 2);
    if (kind == MatrixKind::int8) std::memcpy(operands + at, &code, 1);
    at += kind == MatrixKind::f32 ? 4 : kind == MatrixKind::bf16 ? 2 : 1;
  }
}

}  // namespace

double read_bandwidth(ThreadPool& pool, double seconds) {
  constexpr int64_t kBytes = 512 << 20, kPiece = 256 << 10;
  Block block(kBytes);
  uint8_t* data = block.take(kBytes);
  int64_t threads = pool.size(), stream = kBytes / (threads * 4) / kPiece * kPiece;
  pool.run([&](int thread) { std::memset(data + thread * 4 * stream, 1, 4 * stream); });
  ReadLoop read = selected_isa() >= Isa::avx512 ? read_avx512 : read_avx2;
  std::vector<double> rates(threads);
  pool.run([&](int thread) {
    const uint8_t* own = data + thread * 4 * stream;
    volatile uint64_t sink = 0;
    double bytes = 0, elapsed = 0;
    Clock::time_point start = Clock::now();
    for (int64_t at = 0; elapsed < seconds; at = at + 2 * kPiece <= stream ? at + kPiece : 0) {
      sink = sink + read(own + at, stream, kPiece);
      bytes += 4.0 * kPiece;
      elapsed = seconds_since(start);
    }
    rates[thread] = bytes / elapsed;
  });
  double total = 0;
  for (double rate : rates) total += rate;
  return total;
}

double matrix_rate(MatrixKind kind, ThreadPool& pool, double seconds) {
  RateLoop burst = rate_loop(kind, selected_isa());
  std::vector<double> rates(pool.size());
  pool.run([&](int thread) {
    alignas(64) uint8_t operands[32 << 10];
    random_operands(kind, operands, sizeof operands);
    float sink[16] = {};
    double operations = 0, elapsed = 0;
    burst(operands, sink);
    Clock::time_point start = Clock::now();
    while (elapsed < seconds) {
      operations += burst(operands, sink);
      elapsed = seconds_since(start);
    }
    rates[thread] = operations / elapsed;
  });
  double total = 0;
  for (double rate : rates) total += rate;
  return total;
}

}  // namespace oarlock::cpu
