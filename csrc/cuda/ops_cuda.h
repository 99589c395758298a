// The Ops of one CUDA device: every call is enqueued on one stream and may be captured in a graph.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <memory>
#include <vector>

#include "base/ops.h"
#include "cuda/attention.h"
#include "cuda/device.h"
#include "cuda/gemm.h"
#include "cuda/kernels.h"
#include "cuda/ranks/ranks.h"

namespace oarlock::cuda {

// What the workspace is sized for; nothing is allocated after the constructor but what allocate, pack and make_kv_layer give.
struct OpsLimits {
  int max_tokens = 0, max_sequences = 0;  // of one step
  int heads = 0, head_dim = 0;
  int64_t qkv_cols = 0;
  int64_t gated_rows = 0;  // of the widest gated weight, both halves
  int64_t vocab = 0;       // of the logits that are sampled
};

class CudaOps : public Ops {
 public:
  // dtype: bf16 or f16, of activations, weights and the KV cache. The residual is float32. batch_invariant: a row's result
  // does not depend on the number of rows in a call, at the price of prompts many times slower.
  CudaOps(int device, DType dtype, const OpsLimits& limits, bool batch_invariant);
  ~CudaOps() override;

  // Before anything is loaded: makes this the device of one rank of a split model, which all ranks do alike.
  void join(std::shared_ptr<Comm> comm, const RanksLimits& limits);
  // Null when the model is not split.
  Ranks* ranks() const { return ranks_.get(); }

  cudaStream_t stream() const { return stream_; }
  const Device& device() const { return device_; }
  // Free device memory in bytes, for sizing the KV pool.
  size_t free_memory() const;
  // Waits for everything enqueued; DeviceError when a kernel failed.
  void synchronize();

  DType activation_dtype() const override { return dtype_; }
  DType residual_dtype() const override { return DType::f32; }
  // Of many tokens, what is added takes as long to write and read as the residual does. f16 might overflow.
  DType delta_dtype(int tokens) const override {
    return tokens > 256 && dtype_ == DType::bf16 && !batch_invariant_ ? DType::bf16 : DType::f32;
  }
  void* allocate(size_t bytes) override;
  std::unique_ptr<Weight> pack(const std::vector<WeightPiece>& pieces, WeightFormat format, bool gated) override;
  const float* upload(const float* values, int64_t count) override;
  KvLayer make_kv_layer(int64_t blocks, int kv_heads, int head_dim) override;
  int64_t kv_bytes_per_block(int kv_heads, int head_dim) const override;

  void embed(Tensor residual, const Weight& table, const int32_t* token_ids, int64_t first) override;
  void add_norm(Tensor out, Tensor residual, const Tensor* delta, const float* weight, float epsilon) override;
  void linear(Tensor out, Tensor x, const Weight& w, const float* bias) override;
  void linear_to_rope(Tensor qkv, Tensor x, const Weight& w, const float* bias) override;
  void gated_linear(Tensor out, Tensor x, const Weight& w) override;
  void rope_and_cache(Tensor qkv, const AttentionShape& shape, const float* q_norm, const float* k_norm, float epsilon,
                      const float* rotary, KvLayer cache, const Batch& batch) override;
  void attention(Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache, const Batch& batch) override;
  void gather_rows(Tensor out, Tensor x, const int32_t* rows) override;
  void sample(Tensor logits, const Sampling& sampling, const Sampled& sampled) override;
  void all_reduce(Tensor x) override;
  void share_linear(Tensor delta, Tensor x, const Weight& w) override;
  void sum_add_norm(Tensor out, Tensor residual, Tensor delta, const float* weight, float epsilon) override;
  // sampled has a place for the tokens on every rank.
  void sample_parts(Tensor part, const Batch& batch, const Sampling& sampling, const Sampled& sampled, int first) override;

  // A weight of random elements in +-limit, for benchmarks that need no checkpoint.
  std::unique_ptr<Weight> random_weight(int64_t n, int64_t k, float limit, uint64_t seed);

 private:
  // Whether a kernel of ours did it; else it is cuBLASLt's.
  bool product(Tensor out, Tensor x, const Weight& w, const float* bias, After after);

  const Device device_;
  const DType dtype_;
  const OpsLimits limits_;
  const bool batch_invariant_;
  cudaStream_t stream_ = nullptr;
  std::vector<void*> allocations_;
  AttentionWorkspace attention_workspace_;
  float* sampler_scratch_ = nullptr;
  BlasGemm blas_;
  void* blas_workspace_ = nullptr;
  std::unique_ptr<Ranks> ranks_;
  float* sums_ = nullptr;  // q, k and v of few tokens before they are rotated, [kRotatedInFloat, qkv_cols]
  bool summed_ = false;    // the last product left them there, not in the tensor that rope_and_cache is given
  void* gated_ = nullptr;  // products of a gated weight before the gate, [max_tokens, gated_rows]
};

// A captured chain of calls, replayed as one.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& calls);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch(cudaStream_t stream) const;

 private:
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace oarlock::cuda
