// Division of a step's attention into pieces of work. Which piece a partition falls into never changes its result.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "cpu/attention/attention.h"
#include "cpu/attention/tile.h"

namespace oarlock::cpu {

// Rows [row, row + rows) of one sequence and kv head against partitions [begin, end) of the context.
struct AttentionPiece {
  int sequence, kv_head, row, rows;
  int begin, end;
  int split;  // index into AttentionPlan::splits, or -1 when the piece is the tile's whole context
};

// A tile whose context is divided among several pieces: each partition's result is kept until the last piece merges them.
struct AttentionSplit {
  int begin, end;         // all partitions of the tile
  int64_t partials;       // first float of their memory
  std::atomic<int> left;  // pieces not yet done
};

struct AttentionPlan {
  AttentionPlan(const AttentionLimits& limits, int threads);

  // The pieces of this batch, about eight a thread at least where the context allows. InvalidArgument over the limits.
  void divide(const AttentionShape& shape, const Batch& batch);

  // A Partial in memory: maxima, sums, out, each of whole groups of rows.
  static int64_t partial_floats(int rows, int head_dim) { return whole_groups(rows) * (2 + int64_t(head_dim)); }

  const int threads;
  int64_t piece_room, split_room, partial_room;
  int64_t pieces_used = 0, splits_used = 0;
  std::unique_ptr<AttentionPiece[]> pieces;
  std::unique_ptr<AttentionSplit[]> splits;
};

}  // namespace oarlock::cpu
