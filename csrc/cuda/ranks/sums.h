// Sums over ranks through peer memory, in one kernel with what follows them.
#pragma once

#include <cuda_runtime.h>

#include "base/ops.h"
#include "cuda/ranks/channel.h"

namespace oarlock::cuda {

// How shares of a sum reach the peers. whole: as float32. packed: eight neighbours in 16 bytes, as multiples of 2^-14 of the
// power of two above the largest of them. sent: as float32, and already under way.
enum class Travel { whole, packed, sent };

// Makes [memory, memory + bytes) a channel's places that nothing has come to.
void make_empty(cudaStream_t stream, void* memory, int64_t bytes);

// Every rank's delta (float32), added up in the order of ranks, is added to the residual (float32), and out is the residual's
// RMS norm. delta has contiguous rows, a multiple of 8 columns up to 8192, and fits a part of the channel as it travels.
void sum_add_norm(cudaStream_t stream, const Channel& channel, Travel travel, Tensor out, Tensor residual, Tensor delta,
                  const float* weight, float epsilon);

// x (float32) becomes the sum of every rank's x.
void sum(cudaStream_t stream, const Channel& channel, Tensor x);

}  // namespace oarlock::cuda
