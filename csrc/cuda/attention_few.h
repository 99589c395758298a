// Decode attention of few sequences, for Hopper.
#pragma once

#include <cuda_runtime.h>

#include "base/ops.h"
#include "cuda/attention.h"

namespace oarlock::cuda {

// Of so many KV heads of sequences, and with block tables so wide, it is quicker than attend_decode.
constexpr int kFewItems = 16, kFewBlocks = 16;

bool are_few(const AttentionShape& shape, const Batch& batch);

// As attend_decode, without shared prefixes. How a sequence is split depends on its own length alone.
void attend_few(cudaStream_t stream, const AttentionWorkspace& workspace, Tensor out, Tensor qkv, const AttentionShape& shape,
                KvLayer cache, const Batch& batch);

}  // namespace oarlock::cuda
