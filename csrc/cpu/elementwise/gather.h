// Copies of chosen rows.
#pragma once

#include "base/ops.h"
#include "base/threads.h"

namespace oarlock::cpu {

// out[i] = x[rows[i]] for every row of out; x and out have one dtype and width.
void gather_rows(ThreadPool& pool, Tensor out, Tensor x, const int32_t* rows);

}  // namespace oarlock::cpu
