// The shape of one dense decoder, or of one rank's share of it, and the limits its workspace is sized for.
#pragma once

#include <cstdint>
#include <vector>

#include "base/ops.h"

namespace oarlock {

struct ModelConfig {
  // heads, kv_heads and ffn are this rank's; vocab is the model's.
  int layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0, vocab = 0;
  float norm_epsilon = 1e-5f;
  float attention_scale = 0;
  bool qk_norm = false;
  int sliding_window = 0;  // 0 = none

  // Of a model split over ranks: rank r has the tokens [vocab_starts[r], vocab_starts[r + 1]). Empty when one rank has all.
  int rank = 0;
  std::vector<int64_t> vocab_starts;

  bool split() const { return !vocab_starts.empty(); }
  int64_t first_vocab() const { return split() ? vocab_starts[size_t(rank)] : 0; }
  int64_t own_vocab() const { return split() ? vocab_starts[size_t(rank) + 1] - vocab_starts[size_t(rank)] : vocab; }

  int qkv_width() const { return (heads + 2 * kv_heads) * head_dim; }
  AttentionShape attention() const { return {heads, kv_heads, head_dim, attention_scale, sliding_window}; }
};

struct Limits {
  int max_tokens = 0;               // rows of one step
  int max_sequences = 0;            // sequences of one step
  int max_rows = 0;                 // rows sampled in one step
  int max_blocks_per_sequence = 0;  // width of a block table
  int max_context = 0;              // rows of the rotary table

  // Logits are made for this many rows at a time, which bounds their memory (rows * vocab * 4 bytes).
  // A GPU reads the whole head for each group of rows, so there they should all go at once.
  int logits_at_once = 64;
  int logit_rows() const { return max_rows < logits_at_once ? max_rows : logits_at_once; }
};

}  // namespace oarlock
