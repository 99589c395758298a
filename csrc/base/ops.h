// The operations that a decoder step is made of, behind one interface for every device.
//
// The decoder (model/decoder.h) calls these in order and knows no device; cpu/ and cuda/ implement them. Calls on one Ops
// are ordered: on the CPU each returns when it is done, on CUDA each is enqueued on the Ops' stream. No call allocates after
// the first step of the largest shape.
//
// Reproducibility, which every implementation keeps: a row's result depends on that row's inputs alone (for attention: its
// own sequence up to its own position), never on how many rows, sequences, chunks or threads share the call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"

namespace oarlock {

constexpr int kBlockTokens = 64;     // tokens in a KV block
constexpr int kMaxTopLogprobs = 20;  // alternatives reported with a token

// Rows of activations in device memory: element (r, c) at data + (r * stride + c) elements.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::bf16;
  int64_t rows = 0, cols = 0, stride = 0;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// How a weight arrives from a checkpoint. All are [n, k] row-major by output row n, k the contraction dimension.
// The q*_ kinds are GGUF blocks of 32 along k: q8_0 = f16 d, int8[32]; q4_0 = f16 d, nibbles; q4_1 = f16 d, f16 m, nibbles.
enum class SourceFormat : uint8_t { f32, f16, bf16, q8_0, q4_0, q4_1 };

// How a weight is held. int8: w = s*q, one float32 scale for a span of up to 576 along k. int8_groups: w = d*q per 32 (q8_0's
// own bits). int4: w = s*(d*q + z), one s for a span as in int8, small integers d and z per 32. int4_groups: w = d*q + m per 32
// (q4_1's own bits; q4_0 has m = -8d). keep: the checkpoint's own bits for q8_0/q4_0/q4_1, else the compute dtype.
enum class WeightFormat : uint8_t { keep, f32, f16, bf16, int8, int8_groups, int4, int4_groups };

// A piece of a weight's rows in host memory. Several pieces stacked along n make one weight (q, k, v; gate, up).
struct WeightPiece {
  SourceFormat format = SourceFormat::bf16;
  int64_t n = 0, k = 0;
  const void* data = nullptr;  // n rows, contiguous
};

// A weight packed for one device; made by Ops::pack and only ever passed back to the Ops that made it.
class Weight {
 public:
  virtual ~Weight() = default;
  int64_t n = 0, k = 0;  // n counts all pieces; for a gated weight both halves
  int64_t bytes = 0;     // device memory held
  WeightFormat format = WeightFormat::bf16;
};

// One layer's share of the KV cache; the layout inside a block is the device's own.
struct KvLayer {
  void* keys = nullptr;
  void* values = nullptr;
};

struct AttentionShape {
  int heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 0;  // usually 1/sqrt(head_dim)
  int window = 0;   // keys a query sees, itself included; 0 = all before it
};

// One step's work, every pointer in device memory and int32. Tokens of one sequence are adjacent and in order.
struct Batch {
  int tokens = 0, sequences = 0, rows = 0;
  const int32_t* token_ids = nullptr;     // [tokens]
  const int32_t* positions = nullptr;     // [tokens]
  const int32_t* slots = nullptr;         // [tokens] block * kBlockTokens + offset: where the token's K and V go
  const int32_t* query_starts = nullptr;  // [sequences + 1] first token of each sequence in this batch
  const int32_t* context_lens = nullptr;  // [sequences] tokens in the cache once this batch is written
  const int32_t* block_tables = nullptr;  // [sequences, block_table_stride] physical blocks, in order
  int block_table_stride = 0;
  const int32_t* sample_rows = nullptr;  // [rows] tokens whose logits are wanted, rising
  bool sampled_only = false;             // attention is wanted for these tokens alone; a device may do all
  // Of a model split over ranks. [rows] 1: the likeliest token is the answer; in host memory, null where only all_plain counts.
  const uint8_t* plain = nullptr;
  bool all_plain = false;  // every row is

  // For devices that run behind and may read the cache early: no sequence reads what this step writes, but in the block of
  // its own token.
  bool settled = false;
  // Sequences of one token that begin with the same blocks, for devices that read these once for a group; groups 0 = none.
  int groups = 0;
  const int32_t* shared_blocks = nullptr;  // [sequences] leading blocks shared with the whole group; 0 = in no group
  const int32_t* group_members = nullptr;  // [sequences] sequences, group by group
  const int32_t* group_starts = nullptr;   // [groups + 1] into group_members; a group may be empty
};

// Sampling of `rows` logits; every array has one entry a row unless said otherwise.
// Order: raw log-probabilities are taken first (what is reported), then penalties, bias, mask, temperature, min-p, top-k,
// top-p, draw. temperature 0 is greedy (lowest id on a tie). The draw depends on (seed, draw index) alone.
struct Sampling {
  const float* temperature = nullptr;
  const float* top_p = nullptr;               // 1 = off
  const float* min_p = nullptr;               // 0 = off
  const int32_t* top_k = nullptr;             // 0 = off
  const float* repetition_penalty = nullptr;  // 1 = off; over prompt and output
  const float* presence_penalty = nullptr;    // 0 = off; over output
  const float* frequency_penalty = nullptr;   // 0 = off; over output
  const uint64_t* seed = nullptr;
  const int32_t* draw = nullptr;            // index of this draw in its request
  const int32_t* top_logprobs = nullptr;    // alternatives wanted, 0..kMaxTopLogprobs; -1 = no log-probability at all
  const int32_t* target = nullptr;          // >= 0: report this token's log-probability instead of drawing
  const int32_t* history_starts = nullptr;  // [rows + 1] into the two below: distinct tokens seen, for penalties
  const int32_t* history_ids = nullptr;
  const int32_t* history_counts = nullptr;  // times in the output; 0 = in the prompt only
  const int32_t* bias_starts = nullptr;     // [rows + 1] into the two below
  const int32_t* bias_ids = nullptr;
  const float* bias_values = nullptr;  // added; -inf forbids
  const uint32_t* masks = nullptr;     // [masks wanted, ceil(vocab / 32)] allowed tokens, bit i % 32 of word i / 32
  const int32_t* mask_rows = nullptr;  // row of masks, or -1
};

struct Sampled {
  int32_t* token = nullptr;       // [rows] drawn, or the target
  float* logprob = nullptr;       // [rows] raw log-probability of token
  int32_t* top_ids = nullptr;     // [rows, kMaxTopLogprobs] best first
  float* top_logprobs = nullptr;  // [rows, kMaxTopLogprobs]
  int32_t* status = nullptr;      // [rows] 0, or 1: the logits held NaN or nothing was allowed (token is 0)
};

// The entries from row `first` on; CSR offsets and masks are absolute and stay as they are.
inline Sampling from_row(Sampling sampling, int first) {
  auto move = [first](auto&... pointers) { ((pointers = pointers == nullptr ? nullptr : pointers + first), ...); };
  move(sampling.temperature, sampling.top_p, sampling.min_p, sampling.top_k, sampling.repetition_penalty,
       sampling.presence_penalty, sampling.frequency_penalty, sampling.seed, sampling.draw, sampling.top_logprobs,
       sampling.target, sampling.history_starts, sampling.bias_starts, sampling.mask_rows);
  return sampling;
}

inline Sampled from_row(Sampled sampled, int first) {
  sampled.token += first;
  sampled.logprob += first;
  sampled.top_ids += int64_t(first) * kMaxTopLogprobs;
  sampled.top_logprobs += int64_t(first) * kMaxTopLogprobs;
  sampled.status += first;
  return sampled;
}

class Ops {
 public:
  virtual ~Ops() = default;

  virtual DType activation_dtype() const = 0;  // of norms' outputs and linear inputs and outputs
  virtual DType residual_dtype() const = 0;
  // Of what a step of so many tokens adds to the residual.
  virtual DType delta_dtype(int /* tokens */) const { return residual_dtype(); }
  virtual DType qkv_dtype() const { return activation_dtype(); }
  // Tokens that had better pass through a layer together, before others do, since a cache holds no more of them.
  virtual int tokens_at_once() const { return std::numeric_limits<int>::max(); }

  // Device memory, zeroed; lives as long as the Ops. DeviceError when there is not enough.
  virtual void* allocate(size_t bytes) = 0;
  // Stacks the pieces along n and packs them. gated: two pieces, gate then up, of equal n, for gated_linear.
  virtual std::unique_ptr<Weight> pack(const std::vector<WeightPiece>& pieces, WeightFormat format, bool gated) = 0;
  // Says that `next` is the weight that is used after w, so that the last of w's work can begin to read it. Both must live on.
  virtual void in_turn(Weight& /* w */, const Weight& /* next */) {}
  // A vector (norm weight, bias) as float32 on the device.
  virtual const float* upload(const float* values, int64_t count) = 0;
  virtual KvLayer make_kv_layer(int64_t blocks, int kv_heads, int head_dim) = 0;
  virtual int64_t kv_bytes_per_block(int kv_heads, int head_dim) const = 0;  // of one layer, keys and values

  // residual[t] = row token_ids[t] - first of table; zeros for an id that is not in it, which only a split model has.
  virtual void embed(Tensor residual, const Weight& table, const int32_t* token_ids, int64_t first) = 0;
  // delta == nullptr: out = rms_norm(residual) * weight. Otherwise residual += delta first (and is written back).
  virtual void add_norm(Tensor out, Tensor residual, const Tensor* delta, const float* weight, float epsilon) = 0;
  // out = x w^T (+ bias[n]). out's dtype is its own: float32 for logits.
  virtual void linear(Tensor out, Tensor x, const Weight& w, const float* bias) = 0;
  // linear of a result that nothing but the next call's rope_and_cache sees: it may be kept elsewhere, in a better form.
  virtual void linear_to_rope(Tensor qkv, Tensor x, const Weight& w, const float* bias) { linear(qkv, x, w, bias); }
  // out = silu(x gate^T) * (x up^T); out has n/2 columns.
  virtual void gated_linear(Tensor out, Tensor x, const Weight& w) = 0;
  // On qkv rows [heads*D | kv_heads*D | kv_heads*D]: optional per-head RMS norm of q and k (weights [D] or null), rotation of
  // q and k by position (rotary[position] = D/2 cosines then D/2 sines, float32, halves paired i with i + D/2), then k and v
  // into the cache at slots; q stays in its row, in a form of the device's own.
  virtual void rope_and_cache(Tensor qkv, const AttentionShape& shape, const float* q_norm, const float* k_norm, float epsilon,
                              const float* rotary, KvLayer cache, const Batch& batch) = 0;
  // out[t] (heads*D columns) = attention of the q that rope_and_cache left in qkv, over the cache.
  virtual void attention(Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache, const Batch& batch) = 0;
  // out[i] = x[rows[i]].
  virtual void gather_rows(Tensor out, Tensor x, const int32_t* rows) = 0;
  // logits float32 [rows, vocab]; may be overwritten.
  virtual void sample(Tensor logits, const Sampling& sampling, const Sampled& sampled) = 0;

  // All of a step's operations have been called; nothing comes before the next step.
  virtual void end_step() {}

  // For a model that is split over ranks, each calling alike (base/comm.h).
  // x becomes the sum of every rank's x, the same bits on all of them.
  virtual void all_reduce(Tensor) { throw DeviceError("this device can't run a model that is split over ranks"); }
  // linear without a bias, of a result that nothing but the next call's sum_add_norm sees.
  virtual void share_linear(Tensor delta, Tensor x, const Weight& w) { linear(delta, x, w, nullptr); }
  // add_norm of the sum of every rank's delta, which is of no more use afterwards.
  virtual void sum_add_norm(Tensor out, Tensor residual, Tensor delta, const float* weight, float epsilon) {
    all_reduce(delta);
    add_norm(out, residual, &delta, weight, epsilon);
  }
  // Draws on rank 0 from everybody's columns of the logits; sampling is null elsewhere, and so is what a device need not tell
  // the other ranks in sampled.
  virtual void sample_parts(Tensor, const Batch&, const Sampling&, const Sampled&, int /* first row */) {
    throw DeviceError("this device can't run a model that is split over ranks");
  }
};

}  // namespace oarlock
