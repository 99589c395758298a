// Tokens from a vocabulary that every rank holds a part of, through peer memory.
#pragma once

#include <cuda_runtime.h>

#include "base/ops.h"
#include "cuda/ranks/channel.h"

namespace oarlock::cuda {

// Scratch of choose_likeliest, zeroed before its first call: [rows].
struct Contest {
  uint64_t* best = nullptr;
  uint32_t* arrived = nullptr;
};

// The likeliest token of each row, on every rank; the lowest id on a tie. part: this rank's columns of the logits, from token
// `first` on. status is 1 where the logits held NaN or +inf, or nothing above -inf; no log-probabilities.
void choose_likeliest(cudaStream_t stream, const Channel& channel, const Contest& contest, Tensor part, int first,
                      const Sampled& sampled);

// The logits' way to rank 0, whose memory has `whole` (float32 [rows, stride]) and a flag a rank: the first puts this rank's
// part there, from column `first` on, and raises its flag; rank 0 waits in the second for everybody's.
struct Gathering {
  Channel channel;  // without places: only its rounds, and what a wait needs
  float* whole = nullptr;
  int64_t stride = 0;
  uint32_t* flags = nullptr;  // [world]
};
void put_logits(cudaStream_t stream, const Gathering& gathering, Tensor part, int first);
void await_logits(cudaStream_t stream, const Gathering& gathering);

// tokens[rows] of rank 0 reach every rank.
void share_tokens(cudaStream_t stream, const Channel& channel, int32_t* tokens, int rows);

// For transports without peer memory. The best of this rank's columns of each row, as choose_likeliest compares them; and
// what comes of everybody's, [world, rows].
void find_candidates(cudaStream_t stream, const Contest& contest, Tensor part, int first, uint64_t* candidates);
void choose_candidates(cudaStream_t stream, const uint64_t* candidates, int world, int rows, const Sampled& sampled);
// Columns [first, first + part.cols) of whole, whose rows are `stride` long, become part.
void place_logits(cudaStream_t stream, float* whole, int64_t stride, Tensor part, int first);

}  // namespace oarlock::cuda
