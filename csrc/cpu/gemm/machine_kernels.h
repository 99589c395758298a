// The loops that machine.cpp times, by instruction set. Internal.
#pragma once

#include <cstdint>

namespace oarlock::cpu {

// Reads 4 * bytes: four streams, `stride` bytes apart, `bytes` (a multiple of 256) each. Returns a sum, so that it is done.
using ReadLoop = uint64_t (*)(const uint8_t* data, int64_t stride, int64_t bytes);
// One burst of multiply-adds over `operands` (32 KiB, 64-byte aligned); returns the operations done.
using RateLoop = double (*)(const uint8_t* operands, float* sink);

uint64_t read_avx2(const uint8_t* data, int64_t stride, int64_t bytes);
uint64_t read_avx512(const uint8_t* data, int64_t stride, int64_t bytes);
double rate_f32_avx2(const uint8_t* operands, float* sink);
double rate_f32_avx512(const uint8_t* operands, float* sink);
double rate_bf16_avx512(const uint8_t* operands, float* sink);
double rate_bf16_amx(const uint8_t* operands, float* sink);
double rate_int8_avx2(const uint8_t* operands, float* sink);
double rate_int8_vnni(const uint8_t* operands, float* sink);
double rate_int8_amx(const uint8_t* operands, float* sink);

}  // namespace oarlock::cpu
