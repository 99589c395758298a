#include "model/plan.h"

#include "base/error.h"

namespace oarlock {
namespace {

void check_range(const char* field, const int32_t* values, int64_t count, int64_t low, int64_t high) {
  for (int64_t i = 0; i < count; ++i)
    require(values[i] >= low && values[i] < high, field, "[", i, "] is ", values[i], ", outside ", low, " to ", high - 1);
}

// starts[0] = 0, rising, ending at `end`.
void check_starts(const char* field, const int32_t* starts, int count, int64_t end) {
  require(starts[0] == 0 && starts[count] == end, field, " must run from 0 to ", end);
  for (int i = 0; i < count; ++i) require(starts[i] <= starts[i + 1], field, "[", i + 1, "] is less than the one before it");
}

void check_sequences(const Batch& batch, const ModelConfig& config, const Limits& limits, int64_t blocks) {
  check_range("token_ids", batch.token_ids, batch.tokens, 0, config.vocab);
  check_range("positions", batch.positions, batch.tokens, 0, limits.max_context);
  check_range("slots", batch.slots, batch.tokens, 0, blocks * kBlockTokens);
  check_starts("query_starts", batch.query_starts, batch.sequences, batch.tokens);
  for (int s = 0; s < batch.sequences; ++s) {
    int first = batch.query_starts[s], count = batch.query_starts[s + 1] - first, context = batch.context_lens[s];
    require(count >= 1, "query_starts: sequence ", s, " has no token");
    require(context >= count && context <= limits.max_context && context <= int64_t(batch.block_table_stride) * kBlockTokens,
            "context_lens[", s, "] is ", context, ", outside ", count, " to what positions and block table can hold");
    require(batch.positions[first] == context - count && batch.positions[first + count - 1] == context - 1,
            "positions of sequence ", s, " do not end at its context length ", context);
    check_range("block_tables", batch.block_tables + int64_t(s) * batch.block_table_stride,
                (context + kBlockTokens - 1) / kBlockTokens, 0, blocks);
  }
  check_range("sample_rows", batch.sample_rows, batch.rows, 0, batch.tokens);
}

void check_sampling(const Plan& plan, const ModelConfig& config) {
  const Sampling& s = plan.sampling;
  int rows = plan.batch.rows;
  if (s.top_logprobs) check_range("top_logprobs", s.top_logprobs, rows, -1, kMaxTopLogprobs + 1);
  if (s.target) check_range("target", s.target, rows, -1, config.vocab);
  if (s.history_starts) {
    check_starts("history_starts", s.history_starts, rows, plan.history_entries);
    check_range("history_ids", s.history_ids, plan.history_entries, 0, config.vocab);
  }
  if (s.bias_starts) {
    check_starts("bias_starts", s.bias_starts, rows, plan.bias_entries);
    check_range("bias_ids", s.bias_ids, plan.bias_entries, 0, config.vocab);
  }
  if (s.mask_rows) check_range("mask_rows", s.mask_rows, rows, -1, plan.masks);
}

}  // namespace

void check(const Plan& plan, const ModelConfig& config, const Limits& limits, int64_t blocks, int drawn) {
  const Batch& batch = plan.batch;
  require(batch.tokens >= 1 && batch.tokens <= limits.max_tokens, "a step of ", batch.tokens, " tokens; 1 to ",
          limits.max_tokens, " fit");
  require(batch.sequences >= 1 && batch.sequences <= limits.max_sequences, "a step of ", batch.sequences, " sequences; 1 to ",
          limits.max_sequences, " fit");
  require(batch.rows >= 0 && batch.rows <= limits.max_rows, "a step of ", batch.rows, " sampled rows; 0 to ", limits.max_rows,
          " fit");
  require(batch.block_table_stride >= 1 && batch.block_table_stride <= limits.max_blocks_per_sequence, "block_tables are ",
          batch.block_table_stride, " wide; 1 to ", limits.max_blocks_per_sequence, " fit");
  check_sequences(batch, config, limits, blocks);
  if (plan.token_sources) check_range("token_sources", plan.token_sources, batch.tokens, -1, drawn);
  check_sampling(plan, config);
}

}  // namespace oarlock
