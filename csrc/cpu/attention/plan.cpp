// Division of a step's attention into pieces of work.
#include "cpu/attention/plan.h"

#include <algorithm>

#include "base/error.h"
#include "cpu/attention/tile.h"

namespace oarlock::cpu {
namespace {

constexpr int kPiecesAThread = 8;  // the slowest thread is then late by about an eighth at most

// Memory for partitions of split tiles. A tile that would exceed it stays whole.
constexpr int64_t kLeastPartialFloats = int64_t(1) << 20, kMostPartialFloats = int64_t(1) << 24;

struct Range {
  int begin, end;
};

// Partitions that rows [row, row + rows) of a sequence see.
Range partitions_of(const AttentionShape& shape, const Batch& batch, int first_token, int row, int rows) {
  const int group = shape.heads / shape.kv_heads;
  int first = batch.positions[first_token + row / group], last = batch.positions[first_token + (row + rows - 1) / group];
  int low = shape.window > 0 ? std::max(0, first - shape.window + 1) : 0;
  return {low / kPartitionKeys, last / kPartitionKeys + 1};
}

// Whether results of some of tokens [first, last] are wanted.
class Wanted {
 public:
  explicit Wanted(const Batch& batch)
      : begin_(batch.sample_rows),
        end_(batch.sample_rows + batch.rows),
        all_(!batch.sampled_only || batch.rows == batch.tokens || !std::is_sorted(begin_, end_)) {}

  bool operator()(int first, int last) const {
    if (all_) return true;
    const int32_t* next = std::lower_bound(begin_, end_, first);
    return next != end_ && *next <= last;
  }

 private:
  const int32_t *begin_, *end_;
  const bool all_;
};

// Calls visit(sequence, row, rows, partitions) for each tile that is wanted; a sequence's last tile, the longest, first.
template <typename Visit>
void for_each_tile(const AttentionShape& shape, const Batch& batch, Visit&& visit) {
  const int group = shape.heads / shape.kv_heads;
  const Wanted wanted(batch);
  for (int s = 0; s < batch.sequences; ++s) {
    const int first = batch.query_starts[s];
    int rows = (batch.query_starts[s + 1] - first) * group;
    for (int row = (rows - 1) / kTileRows * kTileRows; row >= 0 && rows > 0; row -= kTileRows) {
      int count = std::min(kTileRows, rows - row);
      if (!wanted(first + row / group, first + (row + count - 1) / group)) continue;
      visit(s, row, count, partitions_of(shape, batch, first, row, count));
    }
  }
}

// In units of a partition against 16 rows.
int64_t cost(int rows, Range partitions) { return int64_t(partitions.end - partitions.begin) * ((rows + 15) / 16); }

}  // namespace

AttentionPlan::AttentionPlan(const AttentionLimits& limits, int threads_) : threads(threads_) {
  const int64_t group = limits.heads / limits.kv_heads;
  const int64_t tiles = limits.kv_heads * (limits.max_sequences + limits.max_tokens * group / kTileRows + 1);
  split_room = std::min<int64_t>(tiles, int64_t(kPiecesAThread) * threads);
  piece_room = tiles + int64_t(kPiecesAThread) * threads;
  const int64_t partitions = (limits.max_context + kPartitionKeys - 1) / kPartitionKeys;
  const int64_t wanted = 2 * limits.kv_heads * partitions * partial_floats(kTileRows, limits.head_dim);
  partial_room = std::min(std::max(wanted, kLeastPartialFloats), kMostPartialFloats);
  pieces = std::make_unique<AttentionPiece[]>(size_t(piece_room));
  splits = std::make_unique<AttentionSplit[]>(size_t(split_room));
}

void AttentionPlan::divide(const AttentionShape& shape, const Batch& batch) {
  int64_t total = 0;
  for_each_tile(shape, batch, [&](int, int, int rows, Range partitions) { total += cost(rows, partitions); });
  const int64_t share = std::max<int64_t>(1, total * shape.kv_heads / (int64_t(kPiecesAThread) * threads));
  int64_t partial_used = 0;
  pieces_used = splits_used = 0;
  for_each_tile(shape, batch, [&](int sequence, int row, int rows, Range partitions) {
    const int count = partitions.end - partitions.begin;
    const int parts = int(std::min<int64_t>(count, (cost(rows, partitions) + share - 1) / share));
    for (int head = 0; head < shape.kv_heads; ++head) {
      require(pieces_used + parts <= piece_room, "attention: the batch is larger than what was reserved");
      int64_t needed = count * partial_floats(rows, shape.head_dim);
      if (parts <= 1 || splits_used == split_room || partial_used + needed > partial_room) {
        pieces[size_t(pieces_used++)] = {sequence, head, row, rows, partitions.begin, partitions.end, -1};
        continue;
      }
      AttentionSplit& split = splits[size_t(splits_used)];
      split.begin = partitions.begin;
      split.end = partitions.end;
      split.partials = partial_used;
      split.left.store(parts, std::memory_order_relaxed);
      for (int part = 0; part < parts; ++part) {
        int begin = partitions.begin + int(int64_t(count) * part / parts);
        int end = partitions.begin + int(int64_t(count) * (part + 1) / parts);
        pieces[size_t(pieces_used++)] = {sequence, head, row, rows, begin, end, int(splits_used)};
      }
      partial_used += needed;
      ++splits_used;
    }
  });
}

}  // namespace oarlock::cpu
