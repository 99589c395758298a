// What attention over shared prefixes is on every card: its items, the rows of one, and the parts that it leaves.
#pragma once

#include "base/error.h"
#include "cuda/attention.h"
#include "cuda/attention_items.cuh"
#include "cuda/attention_rows.cuh"

namespace oarlock::cuda::shared_prefix {

constexpr int kWarps = 8, kThreads = kWarps * 32, kRows = kWarps * 16;  // that look at the keys

struct Params {
  const void *q, *keys, *values;
  const int32_t *query_starts, *shared_blocks, *members, *group_starts, *block_tables;
  float* partials;
  int64_t q_stride;
  int groups, table_stride, heads, kv_heads;
  float scale;  // times log2(e)
};

struct Item {
  int first_member, members, kv_head, split, first, last;
};

// A group's shared blocks and the number of its items.
__device__ __forceinline__ int shared_of(const Params& p, int group) {
  const int first = p.group_starts[group];
  return first < p.group_starts[group + 1] ? p.shared_blocks[p.members[first]] : 0;
}
__device__ __forceinline__ int members_of_item(const Params& p) { return kRows / (p.heads / p.kv_heads); }
__device__ __forceinline__ int items_of(const Params& p, int group) {
  const int members = p.group_starts[group + 1] - p.group_starts[group], each = members_of_item(p);
  return (members + each - 1) / each * p.kv_heads * shared_splits(shared_of(p, group));
}

__device__ __forceinline__ Item find_item(const Params& p, const int* starts, int index) {
  const int group = find_sequence(starts, p.groups, index), each = members_of_item(p), blocks = shared_of(p, group);
  const int splits = shared_splits(blocks);
  int within = index - starts[group];
  Item item;
  // Neighbours read the same blocks, if a group has several tiles of rows.
  const int members = p.group_starts[group + 1] - p.group_starts[group], tiles = (members + each - 1) / each;
  const int tile = within % tiles;
  within /= tiles;
  item.kv_head = within % p.kv_heads;
  item.split = within / p.kv_heads;
  item.first_member = p.group_starts[group] + tile * each;
  item.members = min(each, members - tile * each);
  item.first = int(int64_t(blocks) * item.split / splits);
  item.last = int(int64_t(blocks) * (item.split + 1) / splits);
  return item;
}

// The two rows that a thread has parts of: their sequences, -1 beyond the last, and their heads in the group.
struct Members {
  int sequence[2], head[2];

  __device__ __forceinline__ Members(const Params& p, const Item& item) {
    const int group = p.heads / p.kv_heads;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + r * 8;
      sequence[r] = row < item.members * group ? p.members[item.first_member + row / group] : -1;
      head[r] = row % group;
    }
  }
};

template <typename T, int D>
__device__ __forceinline__ Rows<T, D> load_rows(const Params& p, const Item& item, const Members& members) {
  const int group = p.heads / p.kv_heads;
  return Rows<T, D>([&](int r) -> const T* {
    if (members.sequence[r] < 0) return nullptr;
    return static_cast<const T*>(p.q) + p.query_starts[members.sequence[r]] * p.q_stride +
           (item.kv_head * group + members.head[r]) * D;
  });
}

template <typename T, int D>
__device__ __forceinline__ void store_parts(const Params& p, const Item& item, const Members& members, Rows<T, D>& rows) {
  const int group = p.heads / p.kv_heads, lane = threadIdx.x % 32;
  rows.finish();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (members.sequence[r] < 0) continue;
    float* part = part_of(p.partials, members.sequence[r], item.kv_head, item.split, members.head[r], p.kv_heads, group, D);
    if (lane % 4 == 0) __stcg(reinterpret_cast<float2*>(part + D), make_float2(rows.maximum[r], rows.sum[r]));
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      __stcg(reinterpret_cast<float2*>(part + j * 8 + lane % 4 * 2), make_float2(rows.out[j][r * 2], rows.out[j][r * 2 + 1]));
    }
  }
}

inline Params params_of(const AttentionWorkspace& workspace, Tensor qkv, const AttentionShape& shape, KvLayer cache,
                        const Batch& batch) {
  require(batch.groups <= kMaxGroups, "a step has ", batch.groups, " groups of sequences; at most ", kMaxGroups, " fit");
  require(shape.window == 0, "attention with a window shares no blocks");
  Params p = {};
  p.q = qkv.data;
  p.keys = cache.keys;
  p.values = cache.values;
  p.query_starts = batch.query_starts;
  p.shared_blocks = batch.shared_blocks;
  p.members = batch.group_members;
  p.group_starts = batch.group_starts;
  p.block_tables = batch.block_tables;
  p.partials = workspace.partials;
  p.q_stride = qkv.stride;
  p.groups = batch.groups;
  p.table_stride = batch.block_table_stride;
  p.heads = shape.heads;
  p.kv_heads = shape.kv_heads;
  p.scale = shape.scale * 1.4426950408889634f;
  return p;
}

}  // namespace oarlock::cuda::shared_prefix
