// Attention over the paged cache: one kernel for sequences that bring one token, one for those that bring more. Both look at
// the plan on the device, so that a captured graph serves any plan of its sizes.
#pragma once

#include <cuda_runtime.h>

#include "base/ops.h"
#include "cuda/device.h"

namespace oarlock::cuda {

// Long contexts are split into at most this many parts, and shorter ones every kSplitBlocks blocks, so that how a sequence is
// split depends on its own length alone, and so does the result. Where that is not asked for, and there are sequences enough
// for every multiprocessor, parts are longer: each costs a merge.
constexpr int kMaxSplits = 32, kSplitBlocks = 8;
// Where a context begins with shared blocks, these make half of the parts at most, and the rest of it the other half.
constexpr int kMaxSharedSplits = kMaxSplits / 2, kMaxGroups = 16;

struct AttentionWorkspace {
  float* partials = nullptr;
  int* counters = nullptr;  // [sequences, kv_heads], zero between calls
  int max_sequences = 0;
  static size_t partial_bytes(int sequences, int heads, int head_dim) {
    return size_t(sequences) * size_t(heads) * kMaxSplits * size_t(head_dim + 2) * sizeof(float);
  }
};

// Parts of sequences' contexts: the blocks that groups share. attend_decode must follow, on the same stream.
void attend_shared(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor qkv,
                   const AttentionShape& shape, KvLayer cache, const Batch& batch);

// Sequences of one token; leaves the rows of others alone. Sequences of context 0 (padding) are skipped.
void attend_decode(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor out, Tensor qkv,
                   const AttentionShape& shape, KvLayer cache, const Batch& batch, bool batch_invariant);

// Every token by itself, as attend_decode treats the only one of a sequence, and with the same result to the last bit.
void attend_each(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor out, Tensor qkv,
                 const AttentionShape& shape, KvLayer cache, const Batch& batch);

// Sequences of more than one token.
void attend_prefill(cudaStream_t stream, const Device& device, Tensor out, Tensor qkv, const AttentionShape& shape,
                    KvLayer cache, const Batch& batch);

}  // namespace oarlock::cuda
