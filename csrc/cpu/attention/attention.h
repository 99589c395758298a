// Attention of a step's queries over the paged cache (kv_layout.h).
//
// How a row's bits come to depend on its own context alone: the context is cut into partitions at fixed absolute positions.
// Within one, scores of all keys, their maximum, exponentials and the weighted sum of values are taken in one order; the
// partitions' results are merged in order of position. A tile of up to kTileRows rows (the query heads that share a kv head,
// of adjacent queries) goes through a partition together, and the micro-kernels treat every row alike however many there
// are. A key that a row may not see has probability exactly 0, and a partition without visible keys is skipped, so neither
// the chunk a query came in nor the threads' division of the work is visible in the result.
#pragma once

#include <memory>

#include "base/isa.h"
#include "base/ops.h"
#include "base/threads.h"

namespace oarlock::cpu {

struct AttentionPlan;
struct AttentionScratch;

// The largest step that Attention::reserve makes room for.
struct AttentionLimits {
  int max_tokens = 0, max_sequences = 0, heads = 0, kv_heads = 0, head_dim = 0;
  int64_t max_context = 0;  // tokens of one sequence
};

class Attention {
 public:
  explicit Attention(ThreadPool& pool, Isa isa = selected_isa());
  ~Attention();
  Attention(const Attention&) = delete;
  Attention& operator=(const Attention&) = delete;

  // Allocates everything that attention() uses. InvalidArgument for a head_dim that is no multiple of 16 or above 256.
  void reserve(const AttentionLimits& limits);

  // As Ops::attention, of rotated queries [tokens, heads*D]. They, out and cache share one dtype, bf16 or f32; a query at
  // position p sees keys [max(0, p - window + 1), p]. InvalidArgument when the batch exceeds what was reserved.
  void attention(Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache, const Batch& batch);

 private:
  ThreadPool& pool_;
  const Isa isa_;
  AttentionLimits limits_;
  std::unique_ptr<AttentionPlan> plan_;
  std::unique_ptr<AttentionScratch> scratch_;
};

namespace reference {
void attention(Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache, const Batch& batch);
}

}  // namespace oarlock::cpu
