// What the driver (attention.cpp) and the versions by instruction set agree on: one tile of query rows against one
// partition of the context, and the merge of partitions.
#pragma once

#include <cstdint>

#include "base/isa.h"
#include "base/ops.h"

namespace oarlock::cpu {

constexpr int kRowGroup = 16;                  // rows of a tile instruction
constexpr int kMostGroupRows = 2 * kRowGroup;  // rows whose scores are in the making together
constexpr int kTileRows = 4 * kRowGroup;
constexpr int kPartitionBlocks = 8;
constexpr int kPartitionKeys = kPartitionBlocks * kBlockTokens;
// Rows of the score and probability buffers are padded, so that 16 rows don't fall on the same few cache sets.
constexpr int kScoreStride = kPartitionKeys + 16;
constexpr int kProbabilityStride = kPartitionKeys + 32;

constexpr int whole_groups(int rows) { return (rows + kRowGroup - 1) / kRowGroup * kRowGroup; }

// Result over some keys, for each row: the largest scaled score (base 2) or one that no other exceeds by far, the sum of
// 2^(score - maximum), and the values weighted so [rows up to a whole group, head_dim]. A row that saw no key has maximum -inf
// and sum 0, and its out is not defined.
struct Partial {
  float* maximum;
  float* sum;
  float* out;
};

struct AttentionTile {
  int rows;
  int head_dim;
  float scale_log2;              // multiplies scores; includes log2(e)
  const void* query[kTileRows];  // each row's head_dim elements
  void* out[kTileRows];          // where each row's result goes
  int32_t low[kTileRows];        // row r sees keys [low, high)
  int32_t high[kTileRows];
};

// The blocks of one partition that some row of the tile sees. Keys and values point at the tile's kv head.
struct PartitionBlocks {
  int64_t first_key;  // of the partition
  int begin, end;     // blocks [begin, end) of the partition
  const void* keys[kPartitionBlocks];
  const void* values[kPartitionBlocks];
};

// Memory of one thread; all 64-byte aligned.
struct TileScratch {
  void* queries;        // kTileRows x (head_dim rounded up to 32), in the kernel's own element
  float* scores;        // [kMostGroupRows][kScoreStride]
  bf16* probabilities;  // [kMostGroupRows][kProbabilityStride]
  bf16* key_tail;       // [16][64][2]
  Partial running, current;
};

struct AttentionKernel {
  // Readies the thread for a tile: copies its queries to scratch, configures what needs configuring.
  void (*begin)(const AttentionTile& tile, TileScratch& scratch);
  void (*partition)(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, Partial result);
  // into = into + next, where next's keys come after into's.
  void (*merge)(int rows, int head_dim, Partial into, Partial next);
  // Divides by the sums and writes the tile's out rows.
  void (*finish)(const AttentionTile& tile, Partial total);
  void (*end)();
};

namespace avx2 {
extern const AttentionKernel attention_bf16, attention_f32;
}
namespace avx512 {
extern const AttentionKernel attention_bf16, attention_f32;
}
namespace avx512_bf16 {
extern const AttentionKernel attention_bf16;
}
namespace amx {
extern const AttentionKernel attention_bf16;
}

}  // namespace oarlock::cpu
