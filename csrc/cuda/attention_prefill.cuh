// What attention of sequences that bring several tokens is on every card: the tiles that it is cut into.
#pragma once

#include "base/error.h"
#include "cuda/attention.h"
#include "cuda/attention_items.cuh"

namespace oarlock::cuda::prefill {

constexpr int kTileRows = 128;  // (token, query head of the group) pairs of one sequence and KV head

struct Params {
  void* out;
  const void *q, *keys, *values;
  const int32_t *query_starts, *context_lens, *block_tables;
  int64_t q_stride, out_stride;
  int sequences, table_stride, group, kv_heads, window;
  float scale;  // times log2(e)
};

// Tiles of a sequence: none where it brings one token, which is for decode attention.
__device__ __forceinline__ int tiles_of(const Params& p, int sequence) {
  const int tokens = p.query_starts[sequence + 1] - p.query_starts[sequence];
  return tokens > 1 ? (tokens * p.group + kTileRows - 1) / kTileRows * p.kv_heads : 0;
}

struct Tile {
  int sequence, kv_head, first_row, rows, first_token, first_position, last_position, first_keys, last_keys;
};

// The compiler must see that a warp's threads agree on the way, or it takes the matrix instructions apart.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(~0u, x, 0); }

// Tiles of kTileRows rows, those of a sequence longest first; keys are counted in tiles of kTileKeys.
template <int kTileKeys>
__device__ __forceinline__ Tile find_tile(const Params& p, const int* starts, int index) {
  Tile tile;
  tile.sequence = find_sequence(starts, p.sequences, index);
  const int within = starts[tile.sequence + 1] - 1 - index;
  tile.kv_head = within % p.kv_heads;
  tile.first_row = within / p.kv_heads * kTileRows;
  tile.first_token = p.query_starts[tile.sequence];
  const int tokens = p.query_starts[tile.sequence + 1] - tile.first_token;
  tile.rows = tokens * p.group;
  tile.first_position = p.context_lens[tile.sequence] - tokens;
  const int last_row = tile.first_row + kTileRows < tile.rows ? tile.first_row + kTileRows - 1 : tile.rows - 1;
  tile.last_position = tile.first_position + last_row / p.group;
  const int oldest = p.window > 0 ? tile.first_position + tile.first_row / p.group - p.window + 1 : 0;
  tile.first_keys = uniform(oldest > 0 ? oldest / kTileKeys : 0);
  tile.last_keys = uniform(tile.last_position / kTileKeys + 1);
  return tile;
}

inline Params params_of(Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache, const Batch& batch) {
  Params p = {};
  p.out = out.data;
  p.q = qkv.data;
  p.keys = cache.keys;
  p.values = cache.values;
  p.query_starts = batch.query_starts;
  p.context_lens = batch.context_lens;
  p.block_tables = batch.block_tables;
  p.q_stride = qkv.stride;
  p.out_stride = out.stride;
  p.sequences = batch.sequences;
  p.table_stride = batch.block_table_stride;
  p.group = shape.heads / shape.kv_heads;
  p.kv_heads = shape.kv_heads;
  p.window = shape.window;
  p.scale = shape.scale * 1.4426950408889634f;
  return p;
}

}  // namespace oarlock::cuda::prefill
