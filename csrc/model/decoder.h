// A dense decoder (Llama, Mistral, Qwen2, Qwen3): weights, KV cache, and the chain of Ops calls from token ids to sampled
// tokens. It knows no device; see base/ops.h for what each call means.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/ops.h"
#include "model/config.h"

namespace oarlock {

class Decoder {
 public:
  // rotary: float32 [limits.max_context, head_dim], row p = D/2 cosines then D/2 sines.
  Decoder(std::unique_ptr<Ops> ops, const ModelConfig& config, const Limits& limits, const float* rotary);
  ~Decoder();

  // Takes one weight by name: embed, lm_head, final_norm or layers.{i}.{attn_norm, qkv, qkv_bias, q_norm, k_norm, o,
  // ffn_norm, gate_up, down}. Matrices are stacked pieces; vectors are one piece of k = 1 (float32). InvalidArgument for an
  // unknown name, a second copy or a wrong shape.
  void load(const std::string& name, const std::vector<WeightPiece>& pieces, WeightFormat format);

  // After the last load: checks that nothing is missing and allocates the workspace and a KV cache of `blocks` blocks.
  void finish(int64_t blocks);

  // Runs one step; everything from embedding to sampling. Pointers are device memory.
  void forward(const Batch& batch, const Sampling& sampling, const Sampled& sampled);

  const ModelConfig& config() const { return config_; }
  const Limits& limits() const { return limits_; }
  Ops& ops() { return *ops_; }
  int64_t blocks() const { return blocks_; }
  int64_t weight_bytes() const { return weight_bytes_; }
  // Bytes of weights that one decode step reads: all of them, but an untied embedding only by rows.
  int64_t step_weight_bytes() const;
  int64_t bytes_per_block() const;

 private:
  struct Layer {
    const float *attn_norm = nullptr, *qkv_bias = nullptr, *q_norm = nullptr, *k_norm = nullptr, *ffn_norm = nullptr;
    std::unique_ptr<Weight> qkv, o, gate_up, down;
    KvLayer cache;
  };

  void load_matrix(std::unique_ptr<Weight>& into, const std::string& name, const std::vector<WeightPiece>& pieces,
                   WeightFormat format, int64_t n, int64_t k, bool gated = false);
  void load_vector(const float*& into, const std::string& name, const std::vector<WeightPiece>& pieces, int64_t count);
  // Each rank of a split model holds some rows of a matrix that begins a block and some columns of the one that ends it, so
  // that what a block adds is a sum over ranks.
  void add_norm(Tensor out, Tensor residual, Tensor delta, const float* weight);
  // The product whose result add_norm takes next.
  void linear_to_norm(Tensor delta, Tensor x, const Weight& w);
  int64_t tokens_at_once() const;
  // Room for what `rows` rows add to the residual, in the type that so many tokens of a step have.
  Tensor delta_of(int64_t rows, int64_t tokens) const;
  // From a layer's attention to its end; what is then still to be added to the residual is left in delta.
  void feed_forward(const Layer& layer, Tensor residual, Tensor delta, Tensor normed, Tensor attended, Tensor hidden);
  Tensor workspace(DType dtype, int64_t rows, int64_t cols);
  const Weight& head() const { return lm_head_ ? *lm_head_ : *embed_; }

  std::unique_ptr<Ops> ops_;
  const ModelConfig config_;
  const Limits limits_;
  const float* rotary_;
  std::unique_ptr<Weight> embed_, lm_head_;
  const float* final_norm_ = nullptr;
  std::vector<Layer> layers_;
  int64_t weight_bytes_ = 0, blocks_ = 0;

  // Workspace, by rows: of max_tokens, of what passes at once, and of logit_rows.
  Tensor residual_, qkv_, attended_;
  Tensor normed_, delta_, hidden_;
  Tensor row_residual_, row_attended_, logits_;
};

}  // namespace oarlock
