// What this machine can do at best: the floors that benches and `oarlock bench floor` set results against.
#pragma once

#include "base/threads.h"

namespace oarlock::cpu {

enum class MatrixKind { f32, bf16, int8 };

// Bytes a second that the threads together read from memory: four interleaved streams a thread over 512 MiB, for about
// `seconds`. DeviceError when that much memory is not to be had.
double read_bandwidth(ThreadPool& pool, double seconds);

// Floating point (int8: integer) operations a second of the selected instruction set's best unit for this kind, operands from
// the L1 cache, all threads together, for about `seconds`. A multiply-add counts as two.
double matrix_rate(MatrixKind kind, ThreadPool& pool, double seconds);

}  // namespace oarlock::cpu
