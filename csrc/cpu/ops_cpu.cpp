#include "cpu/ops_cpu.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "cpu/attention/attention.h"
#include "cpu/attention/kv_layout.h"
#include "cpu/elementwise/gather.h"
#include "cpu/gemm/gemm.h"
#include "cpu/gemm/memory.h"
#include "cpu/norm/norm.h"
#include "cpu/ranks/ranks.h"
#include "cpu/rope/rope.h"
#include "cpu/sampler/sampler.h"

namespace oarlock::cpu {
namespace {

const PackedWeight& packed(const Weight& weight) { return static_cast<const PackedWeight&>(weight); }

// About 2 MB of activations, and enough rows that the weights that pass by do not set the pace.
constexpr int kTokensAThread = 256;

class CpuOps : public Ops {
 public:
  CpuOps(DType dtype, int threads, const OpsLimits& limits)
      : dtype_(dtype), pool_(threads), norm_(pool_), rope_(pool_), attention_(pool_), sampler_(pool_) {
    require(dtype == DType::bf16 || dtype == DType::f32, "the CPU computes in bf16 or f32");
    workspace_.reserve(limits.max_tokens, limits.max_k, threads);
    attention_.reserve(
        {limits.max_tokens, limits.max_sequences, limits.heads, limits.kv_heads, limits.head_dim, limits.max_context});
    sampler_.reserve(limits.max_rows, limits.vocab);
    if (limits.comm == nullptr) return;
    ranks_.emplace(limits.comm, limits.vocab_starts, pool_, sampler_);
    ranks_->reserve(limits.max_rows);
  }

  DType activation_dtype() const override { return dtype_; }
  DType residual_dtype() const override { return DType::f32; }
  // Queries, keys and values are rounded once, after their rotation.
  DType qkv_dtype() const override { return DType::f32; }
  int tokens_at_once() const override { return kTokensAThread * pool_.size(); }

  void* allocate(size_t bytes) override {
    pieces_.push_back(allocate_piece(bytes));
    return pieces_.back().data;
  }

  std::unique_ptr<Weight> pack(const std::vector<WeightPiece>& pieces, WeightFormat format, bool gated) override {
    return cpu::pack(pieces, format, gated, dtype_, pool_);
  }

  void in_turn(Weight& w, const Weight& next) override { static_cast<PackedWeight&>(w).next = &packed(next); }

  const float* upload(const float* values, int64_t count) override {
    auto* copy = static_cast<float*>(allocate(size_t(count) * sizeof(float)));
    std::memcpy(copy, values, size_t(count) * sizeof(float));
    return copy;
  }

  KvLayer make_kv_layer(int64_t blocks, int kv_heads, int head_dim) override {
    size_t half = size_t(blocks * kv_bytes_per_block(kv_heads, head_dim)) / 2;
    return {allocate(half), allocate(half)};
  }

  int64_t kv_bytes_per_block(int kv_heads, int head_dim) const override { return kv_block_bytes(dtype_, kv_heads, head_dim); }

  void embed(Tensor residual, const Weight& table, const int32_t* token_ids, int64_t first) override {
    pool_.for_each(residual.rows, [&](int64_t row, int) {
      float* into = residual.as<float>() + row * residual.stride;
      const int64_t id = token_ids[row] - first;
      if (id >= 0 && id < table.n) {
        unpack_row(packed(table), id, into);
      } else {
        std::fill_n(into, residual.cols, 0.0f);
      }
    });
  }

  void add_norm(Tensor out, Tensor residual, const Tensor* delta, const float* weight, float epsilon) override {
    norm_.add_norm(out, residual, delta, weight, epsilon);
  }

  void linear(Tensor out, Tensor x, const Weight& w, const float* bias) override {
    cpu::linear(pool_, workspace_, out, x, packed(w), bias);
  }

  void gated_linear(Tensor out, Tensor x, const Weight& w) override { cpu::gated_linear(pool_, workspace_, out, x, packed(w)); }

  void rope_and_cache(Tensor qkv, const AttentionShape& shape, const float* q_norm, const float* k_norm, float epsilon,
                      const float* rotary, KvLayer cache, const Batch& batch) override {
    rope_.rope_and_cache(qkv, dtype_, shape, q_norm, k_norm, epsilon, rotary, cache, batch);
  }

  void attention(Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache, const Batch& batch) override {
    attention_.attention(out, queries(qkv, dtype_, shape), shape, cache, batch);
  }

  void gather_rows(Tensor out, Tensor x, const int32_t* rows) override { cpu::gather_rows(pool_, out, x, rows); }

  void sample(Tensor logits, const Sampling& sampling, const Sampled& sampled) override {
    sampler_.sample(logits, sampling, sampled);
  }

  void end_step() override { pool_.rest(); }

  void all_reduce(Tensor x) override { ranks_->all_reduce(x); }

  void sample_parts(Tensor part, const Batch& batch, const Sampling& sampling, const Sampled& sampled, int first) override {
    const bool null = sampled.token == nullptr;
    ranks_->sample(part, batch.plain + first, null ? sampling : from_row(sampling, first),
                   null ? sampled : from_row(sampled, first));
  }

 private:
  const DType dtype_;
  ThreadPool pool_;
  Workspace workspace_;
  Norm norm_;
  Rope rope_;
  Attention attention_;
  Sampler sampler_;
  std::optional<Ranks> ranks_;
  std::vector<Piece> pieces_;
};

}  // namespace

std::unique_ptr<Ops> make_ops(DType dtype, int threads, const OpsLimits& limits) {
  return std::make_unique<CpuOps>(dtype, threads, limits);
}

}  // namespace oarlock::cpu
