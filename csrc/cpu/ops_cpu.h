// The Ops of the CPU: the kernel families of this folder over one pool of threads and one workspace.
#pragma once

#include <memory>
#include <vector>

#include "base/comm.h"
#include "base/ops.h"

namespace oarlock::cpu {

// The largest step that will be run, for which all scratch memory is taken at once.
struct OpsLimits {
  int max_tokens = 0, max_sequences = 0, max_rows = 0;  // max_rows: of logits at a time
  int64_t max_context = 0;                              // tokens of one sequence
  int heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;
  int64_t max_k = 0;  // columns of the widest activation that is multiplied
  // Of a model split over ranks; vocab is the model's, vocab_starts says which tokens each rank holds.
  std::shared_ptr<Comm> comm;
  std::vector<int64_t> vocab_starts;
};

// dtype of activations and of the KV cache: bf16 or f32. The residual is float32 in both.
std::unique_ptr<Ops> make_ops(DType dtype, int threads, const OpsLimits& limits);

}  // namespace oarlock::cpu
