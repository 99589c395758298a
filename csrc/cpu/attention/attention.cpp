// Runs a step's attention: divides it into pieces, hands them to the threads, merges what was split.
#include "cpu/attention/attention.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "cpu/attention/kv_layout.h"
#include "cpu/attention/plan.h"
#include "cpu/attention/tile.h"

namespace oarlock::cpu {

struct AttentionScratch {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory;
  std::vector<TileScratch> threads;
  float* partials = nullptr;

  AttentionScratch(int thread_count, int head_dim, int64_t partial_floats);
};

namespace {

// Hands out 64-byte aligned parts of one allocation; with no base it only counts.
struct Carver {
  char* base = nullptr;
  size_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    T* at = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return at;
  }
  Partial take_partial(int rows, int head_dim) {
    float* maximum = take<float>(rows);
    float* sum = take<float>(rows);
    return {maximum, sum, take<float>(int64_t(rows) * head_dim)};
  }
};

void carve(AttentionScratch& scratch, Carver& carver, int head_dim, int64_t partial_floats) {
  for (TileScratch& thread : scratch.threads) {
    thread.queries = carver.take<float>(int64_t(kTileRows) * ((head_dim + 31) / 32 * 32));
    thread.scores = carver.take<float>(int64_t(kMostGroupRows) * kScoreStride);
    thread.probabilities = carver.take<bf16>(int64_t(kMostGroupRows) * kProbabilityStride);
    thread.key_tail = carver.take<bf16>(16 * kBlockTokens * 2);
    thread.running = carver.take_partial(kTileRows, head_dim);
    thread.current = carver.take_partial(kTileRows, head_dim);
  }
  scratch.partials = carver.take<float>(partial_floats);
}

const AttentionKernel& kernel_for(Isa isa, DType dtype) {
  if (dtype == DType::f32) return isa >= Isa::avx512 ? avx512::attention_f32 : avx2::attention_f32;
  // A machine with tiles has VBMI unless a hypervisor hides it.
  if (isa == Isa::amx && __builtin_cpu_supports("avx512vbmi")) return amx::attention_bf16;
  if (isa >= Isa::avx512_bf16) return avx512_bf16::attention_bf16;
  return isa >= Isa::avx512 ? avx512::attention_bf16 : avx2::attention_bf16;
}

// One call's inputs, and the work of one piece on one thread.
struct Step {
  const AttentionKernel& kernel;
  Tensor out, qkv;
  const AttentionShape& shape;
  KvLayer cache;
  const Batch& batch;
  AttentionPlan& plan;
  float* partials;

  AttentionTile tile_of(const AttentionPiece& piece) const {
    const int group = shape.heads / shape.kv_heads;
    const int64_t element = size_of(qkv.dtype);
    AttentionTile tile;
    tile.rows = piece.rows;
    tile.head_dim = shape.head_dim;
    tile.scale_log2 = shape.scale * 1.44269504088896341f;
    int64_t token = batch.query_starts[piece.sequence] + piece.row / group;
    int head = piece.row % group;  // of those that share the kv head
    for (int r = 0; r < piece.rows; ++r) {
      const int64_t column = int64_t(piece.kv_head * group + head) * shape.head_dim;
      tile.query[r] = qkv.as<char>() + (token * qkv.stride + column) * element;
      tile.out[r] = out.as<char>() + (token * out.stride + column) * element;
      tile.high[r] = batch.positions[token] + 1;
      tile.low[r] = shape.window > 0 ? std::max(0, tile.high[r] - shape.window) : 0;
      if (++head == group) head = 0, ++token;
    }
    return tile;
  }

  PartitionBlocks blocks_of(const AttentionTile& tile, const AttentionPiece& piece, int partition) const {
    const int64_t element = size_of(qkv.dtype);
    const int32_t* table = batch.block_tables + int64_t(piece.sequence) * batch.block_table_stride;
    const int first = partition * kPartitionBlocks;
    PartitionBlocks blocks;
    blocks.first_key = int64_t(partition) * kPartitionKeys;
    blocks.begin = std::max(0, tile.low[0] / kBlockTokens - first);
    blocks.end = std::min(kPartitionBlocks, (tile.high[tile.rows - 1] + kBlockTokens - 1) / kBlockTokens - first);
    for (int b = blocks.begin; b < blocks.end; ++b) {
      int64_t start = kv_head_start(table[first + b], shape.kv_heads, piece.kv_head, shape.head_dim) * element;
      blocks.keys[b] = static_cast<char*>(cache.keys) + start;
      blocks.values[b] = static_cast<char*>(cache.values) + start;
    }
    return blocks;
  }

  Partial split_partial(const AttentionPiece& piece, int partition) const {
    const AttentionSplit& split = plan.splits[size_t(piece.split)];
    float* at =
        partials + split.partials + (partition - split.begin) * AttentionPlan::partial_floats(piece.rows, shape.head_dim);
    const int rows = whole_groups(piece.rows);
    return {at, at + rows, at + 2 * rows};
  }

  void run(const AttentionPiece& piece, TileScratch& scratch) const {
    AttentionTile tile = tile_of(piece);
    kernel.begin(tile, scratch);
    // Results go to lines that another core may have written last.
    for (int r = 0; r < tile.rows; ++r)
      for (int64_t at = 0; at < shape.head_dim * size_of(out.dtype); at += 64)
        __builtin_prefetch(static_cast<const char*>(tile.out[r]) + at, 1);
    for (int partition = piece.begin; partition < piece.end; ++partition) {
      PartitionBlocks blocks = blocks_of(tile, piece, partition);
      if (piece.split >= 0) {
        kernel.partition(tile, blocks, scratch, split_partial(piece, partition));
      } else if (partition == piece.begin) {
        kernel.partition(tile, blocks, scratch, scratch.running);
      } else {
        kernel.partition(tile, blocks, scratch, scratch.current);
        kernel.merge(tile.rows, tile.head_dim, scratch.running, scratch.current);
      }
    }
    kernel.end();
    if (piece.split < 0) return kernel.finish(tile, scratch.running);
    AttentionSplit& split = plan.splits[size_t(piece.split)];
    if (split.left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    Partial total = split_partial(piece, split.begin);
    for (int partition = split.begin + 1; partition < split.end; ++partition)
      kernel.merge(tile.rows, tile.head_dim, total, split_partial(piece, partition));
    kernel.finish(tile, total);
  }
};

}  // namespace

AttentionScratch::AttentionScratch(int thread_count, int head_dim, int64_t partial_floats) {
  threads.resize(size_t(thread_count));
  Carver counter;
  carve(*this, counter, head_dim, partial_floats);
  memory.reset(static_cast<char*>(std::aligned_alloc(64, counter.used)));
  if (!memory) throw DeviceError(concat("attention: no memory for ", counter.used, " bytes of scratch"));
  Carver carver{memory.get()};
  carve(*this, carver, head_dim, partial_floats);
}

Attention::Attention(ThreadPool& pool, Isa isa) : pool_(pool), isa_(isa) {}
Attention::~Attention() = default;

void Attention::reserve(const AttentionLimits& limits) {
  require(limits.head_dim >= 16 && limits.head_dim % 16 == 0 && limits.head_dim <= 256,
          "attention: head_dim must be a multiple of 16 up to 256, not ", limits.head_dim);
  require(limits.kv_heads > 0 && limits.heads % limits.kv_heads == 0, "attention: heads (", limits.heads,
          ") must be a multiple of kv_heads (", limits.kv_heads, ")");
  limits_ = limits;
  plan_ = std::make_unique<AttentionPlan>(limits, pool_.size());
  scratch_ = std::make_unique<AttentionScratch>(pool_.size(), limits.head_dim, plan_->partial_room);
}

void Attention::attention(Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache, const Batch& batch) {
  require(plan_ != nullptr, "attention: reserve() was not called");
  require(shape.heads == limits_.heads && shape.kv_heads == limits_.kv_heads && shape.head_dim == limits_.head_dim,
          "attention: the shape is not the reserved one");
  require(batch.tokens <= limits_.max_tokens && batch.sequences <= limits_.max_sequences, "attention: ", batch.tokens,
          " tokens of ", batch.sequences, " sequences exceed what was reserved");
  require(qkv.dtype == out.dtype && (qkv.dtype == DType::bf16 || qkv.dtype == DType::f32),
          "attention: qkv and out must both be bf16 or both float32");
  plan_->divide(shape, batch);
  const Step step{kernel_for(isa_, qkv.dtype), out, qkv, shape, cache, batch, *plan_, scratch_->partials};
  pool_.for_each(plan_->pieces_used,
                 [&](int64_t piece, int thread) { step.run(plan_->pieces[size_t(piece)], scratch_->threads[size_t(thread)]); });
}

}  // namespace oarlock::cpu
