// Loops for machine.cpp: tile products, two by two, every operand loaded from the L1 cache as a real product must.
#include <immintrin.h>

#include "cpu/gemm/machine_kernels.h"

namespace oarlock::cpu {
namespace {

constexpr int kRounds = 1024;

void configure_full_tiles() {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  // gcc 12 believes that the instruction reads 8 bytes only, and would drop the stores to the rest.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// The intrinsics take tile numbers as literals.
#define MULTIPLY(c, a, b)    \
  if (kInt8) {               \
    _tile_dpbusd(c, a, b);   \
  } else {                   \
    _tile_dpbf16ps(c, a, b); \
  }

template <bool kInt8>
double rate(const uint8_t* operands, float* sink) {
  configure_full_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int round = 0; round < kRounds; ++round) {
    const uint8_t* from = operands + round % 8 * 4096;
    _tile_loadd(4, from, 64);
    _tile_loadd(6, from + 1024, 64);
    MULTIPLY(0, 4, 6)
    _tile_loadd(5, from + 2048, 64);
    MULTIPLY(2, 5, 6)
    _tile_loadd(7, from + 3072, 64);
    MULTIPLY(1, 4, 7)
    MULTIPLY(3, 5, 7)
  }
  float results[256];
  _tile_stored(0, results, 64);
  _tile_release();
  sink[0] += results[0];
  return kRounds * 4.0 * (kInt8 ? 32768 : 16384);
}

}  // namespace

double rate_bf16_amx(const uint8_t* operands, float* sink) { return rate<false>(operands, sink); }
double rate_int8_amx(const uint8_t* operands, float* sink) { return rate<true>(operands, sink); }

}  // namespace oarlock::cpu
