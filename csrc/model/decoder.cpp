#include "model/decoder.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace oarlock {
namespace {

Tensor first_rows(Tensor tensor, int64_t rows) {
  tensor.rows = rows;
  return tensor;
}

Tensor rows_of(Tensor tensor, int64_t first, int64_t rows) {
  tensor.data = tensor.as<char>() + first * tensor.stride * size_of(tensor.dtype);
  return first_rows(tensor, rows);
}

// Tokens [first, first + count) of a batch, for what treats each token by itself.
Batch tokens_of(Batch batch, int first, int count) {
  batch.tokens = count;
  batch.token_ids += first;
  batch.positions += first;
  batch.slots += first;
  return batch;
}

}  // namespace

Decoder::Decoder(std::unique_ptr<Ops> ops, const ModelConfig& config, const Limits& limits, const float* rotary)
    : ops_(std::move(ops)), config_(config), limits_(limits), layers_(size_t(config.layers)) {
  rotary_ = ops_->upload(rotary, int64_t(limits.max_context) * config.head_dim);
}

Decoder::~Decoder() = default;

void Decoder::load_matrix(std::unique_ptr<Weight>& into, const std::string& name, const std::vector<WeightPiece>& pieces,
                          WeightFormat format, int64_t n, int64_t k, bool gated) {
  require(!into, name, " was loaded twice");
  int64_t rows = 0;
  for (const auto& piece : pieces) {
    require(piece.k == k, name, " has ", piece.k, " columns where the model's configuration says ", k);
    rows += piece.n;
  }
  require(rows == n, name, " has ", rows, " rows where the model's configuration says ", n);
  into = ops_->pack(pieces, format, gated);
  weight_bytes_ += into->bytes;
}

void Decoder::load_vector(const float*& into, const std::string& name, const std::vector<WeightPiece>& pieces, int64_t count) {
  require(into == nullptr, name, " was loaded twice");
  require(pieces.size() == 1 && pieces[0].format == SourceFormat::f32 && pieces[0].k == 1, name,
          " is a vector: one float32 piece is wanted");
  require(pieces[0].n == count, name, " has ", pieces[0].n, " values where the model's configuration says ", count);
  into = ops_->upload(static_cast<const float*>(pieces[0].data), count);
  weight_bytes_ += count * 4;
}

void Decoder::load(const std::string& name, const std::vector<WeightPiece>& pieces, WeightFormat format) {
  const auto& c = config_;
  int64_t hidden = c.hidden, q_width = int64_t(c.heads) * c.head_dim;
  if (name == "embed") return load_matrix(embed_, name, pieces, format, c.own_vocab(), hidden);
  if (name == "lm_head") return load_matrix(lm_head_, name, pieces, format, c.own_vocab(), hidden);
  if (name == "final_norm") return load_vector(final_norm_, name, pieces, hidden);

  const std::string prefix = "layers.";
  size_t dot = name.find('.', prefix.size());
  bool numbered =
      name.compare(0, prefix.size(), prefix) == 0 && dot != std::string::npos && dot > prefix.size() &&
      std::all_of(name.begin() + long(prefix.size()), name.begin() + long(dot), [](char c) { return c >= '0' && c <= '9'; });
  require(numbered && dot - prefix.size() < 6, "no weight is called ", name);
  size_t index = std::stoul(name.substr(prefix.size(), dot - prefix.size()));
  require(index < layers_.size(), name, ": the model's configuration says ", layers_.size(), " layers");
  Layer& layer = layers_[index];
  std::string part = name.substr(dot + 1);
  if (part == "attn_norm") return load_vector(layer.attn_norm, name, pieces, hidden);
  if (part == "qkv") return load_matrix(layer.qkv, name, pieces, format, c.qkv_width(), hidden);
  if (part == "qkv_bias") return load_vector(layer.qkv_bias, name, pieces, c.qkv_width());
  if (part == "q_norm") return load_vector(layer.q_norm, name, pieces, c.head_dim);
  if (part == "k_norm") return load_vector(layer.k_norm, name, pieces, c.head_dim);
  if (part == "o") return load_matrix(layer.o, name, pieces, format, hidden, q_width);
  if (part == "ffn_norm") return load_vector(layer.ffn_norm, name, pieces, hidden);
  if (part == "gate_up") return load_matrix(layer.gate_up, name, pieces, format, 2 * int64_t(c.ffn), hidden, true);
  if (part == "down") return load_matrix(layer.down, name, pieces, format, hidden, c.ffn);
  throw InvalidArgument(concat("no weight is called ", name));
}

Tensor Decoder::workspace(DType dtype, int64_t rows, int64_t cols) {
  return {ops_->allocate(size_t(rows * cols) * size_t(size_of(dtype))), dtype, rows, cols, cols};
}

void Decoder::finish(int64_t blocks) {
  require(blocks_ == 0, "the model was finished twice");
  require(blocks >= 1, "the KV cache needs at least one block, not ", blocks);
  require(embed_ != nullptr, "embed is missing");
  require(final_norm_ != nullptr, "final_norm is missing");
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    auto present = [&](bool loaded, const char* part) { require(loaded, "layers.", i, ".", part, " is missing"); };
    present(layer.attn_norm, "attn_norm");
    present(layer.qkv != nullptr, "qkv");
    present(layer.o != nullptr, "o");
    present(layer.ffn_norm, "ffn_norm");
    present(layer.gate_up != nullptr, "gate_up");
    present(layer.down != nullptr, "down");
    present(!config_.qk_norm || (layer.q_norm && layer.k_norm), "q_norm or k_norm");
  }
  blocks_ = blocks;
  DType act = ops_->activation_dtype(), res = ops_->residual_dtype();
  const int64_t tokens = limits_.max_tokens, rows = limits_.logit_rows(), queries = int64_t(config_.heads) * config_.head_dim;
  const int64_t at_once = std::max(rows, std::min<int64_t>(tokens, tokens_at_once()));
  residual_ = workspace(res, tokens, config_.hidden);
  normed_ = workspace(act, at_once, config_.hidden);
  qkv_ = workspace(ops_->qkv_dtype(), tokens, config_.qkv_width());
  attended_ = workspace(act, tokens, queries);
  delta_ = workspace(res, at_once, config_.hidden);
  hidden_ = workspace(act, at_once, config_.ffn);
  row_residual_ = workspace(res, rows, config_.hidden);
  row_attended_ = workspace(act, rows, queries);
  logits_ = workspace(DType::f32, rows, config_.own_vocab());
  for (size_t i = 0; i < layers_.size(); ++i) {
    ops_->in_turn(*layers_[i].o, *layers_[i].gate_up);
    ops_->in_turn(*layers_[i].gate_up, *layers_[i].down);
    if (i + 1 < layers_.size()) ops_->in_turn(*layers_[i].down, *layers_[i + 1].qkv);
  }
  for (Layer& layer : layers_) layer.cache = ops_->make_kv_layer(blocks, config_.kv_heads, config_.head_dim);
}

int64_t Decoder::step_weight_bytes() const { return weight_bytes_ - (lm_head_ ? embed_->bytes : 0); }

int64_t Decoder::bytes_per_block() const {
  return config_.layers * ops_->kv_bytes_per_block(config_.kv_heads, config_.head_dim);
}

// Ranks of a split model, whose caches may differ, agree on one part.
int64_t Decoder::tokens_at_once() const { return config_.split() ? limits_.max_tokens : ops_->tokens_at_once(); }

// Ranks add their shares up as they are.
Tensor Decoder::delta_of(int64_t rows, int64_t tokens) const {
  Tensor delta = first_rows(delta_, rows);
  if (!config_.split()) delta.dtype = ops_->delta_dtype(int(tokens));
  return delta;
}

void Decoder::add_norm(Tensor out, Tensor residual, Tensor delta, const float* weight) {
  if (config_.split()) return ops_->sum_add_norm(out, residual, delta, weight, config_.norm_epsilon);
  ops_->add_norm(out, residual, &delta, weight, config_.norm_epsilon);
}

void Decoder::linear_to_norm(Tensor delta, Tensor x, const Weight& w) {
  if (config_.split()) return ops_->share_linear(delta, x, w);
  ops_->linear(delta, x, w, nullptr);
}

void Decoder::feed_forward(const Layer& layer, Tensor residual, Tensor delta, Tensor normed, Tensor attended, Tensor hidden) {
  linear_to_norm(delta, attended, *layer.o);
  add_norm(normed, residual, delta, layer.ffn_norm);
  ops_->gated_linear(hidden, normed, *layer.gate_up);
  linear_to_norm(delta, hidden, *layer.down);
}

void Decoder::forward(const Batch& batch, const Sampling& sampling, const Sampled& sampled) {
  const AttentionShape shape = config_.attention();
  const float epsilon = config_.norm_epsilon;
  Tensor residual = first_rows(residual_, batch.tokens), qkv = first_rows(qkv_, batch.tokens),
         attended = first_rows(attended_, batch.tokens);

  // Between two layers' attention, what happens to a token is its own affair, so tokens pass in parts that a cache holds.
  const int64_t at_once = tokens_at_once();
  const int parts = int((batch.tokens + at_once - 1) / at_once);
  const int part = parts > 1 ? ((batch.tokens + parts - 1) / parts + 31) / 32 * 32 : batch.tokens;
  ops_->embed(residual, *embed_, batch.token_ids, config_.first_vocab());
  if (config_.split()) ops_->all_reduce(residual);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    for (int first = 0; first < batch.tokens; first += part) {
      const int count = std::min(part, batch.tokens - first);
      Tensor part_residual = rows_of(residual, first, count), part_delta = delta_of(count, batch.tokens),
             part_normed = first_rows(normed_, count);
      if (i > 0) {
        feed_forward(layers_[i - 1], part_residual, part_delta, part_normed, rows_of(attended, first, count),
                     first_rows(hidden_, count));
        add_norm(part_normed, part_residual, part_delta, layer.attn_norm);
      } else {
        ops_->add_norm(part_normed, part_residual, nullptr, layer.attn_norm, epsilon);
      }
      Tensor part_qkv = rows_of(qkv, first, count);
      ops_->linear_to_rope(part_qkv, part_normed, *layer.qkv, layer.qkv_bias);
      ops_->rope_and_cache(part_qkv, shape, layer.q_norm, layer.k_norm, epsilon, rotary_, layer.cache,
                           tokens_of(batch, first, count));
    }
    Batch wanted = batch;
    wanted.sampled_only = i + 1 == layers_.size();
    ops_->attention(attended, qkv, shape, layer.cache, wanted);
  }

  // Only the rows that are sampled go on through the last layer's feed-forward and the head, a bounded number at a time.
  for (int first = 0; first < batch.rows; first += int(logits_.rows)) {
    const int64_t rows = std::min<int64_t>(logits_.rows, batch.rows - first);
    Tensor row_residual = first_rows(row_residual_, rows), row_attended = first_rows(row_attended_, rows),
           row_delta = delta_of(rows, rows), row_normed = first_rows(normed_, rows), logits = first_rows(logits_, rows);
    ops_->gather_rows(row_residual, residual, batch.sample_rows + first);
    ops_->gather_rows(row_attended, attended, batch.sample_rows + first);
    feed_forward(layers_.back(), row_residual, row_delta, row_normed, row_attended, first_rows(hidden_, rows));
    add_norm(row_normed, row_residual, row_delta, final_norm_);
    ops_->linear(logits, row_normed, head(), nullptr);
    if (config_.split()) {
      ops_->sample_parts(logits, batch, sampling, sampled, first);
    } else {
      ops_->sample(logits, from_row(sampling, first), from_row(sampled, first));
    }
  }
  ops_->end_step();
}

}  // namespace oarlock
