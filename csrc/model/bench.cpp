// decoder_bench: where the time of one step goes, by kind of operation, on random weights of SmolLM2-135M's shape.
// Usage: decoder_bench [f32|bf16|int8|int4|int8_groups|int4_groups] [tokens ...]: a prompt of so many tokens in one step; a
// negative number stands for so many sequences that each decode a token at the end of a context of 256.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/isa.h"
#include "cpu/gemm/machine.h"
#include "cpu/ops_cpu.h"
#include "model/decoder.h"

namespace oarlock {
namespace {

using Clock = std::chrono::steady_clock;

enum Part { kEmbed, kNorm, kQkv, kRope, kAttention, kOut, kGateUp, kDown, kHead, kGather, kSample, kParts };
constexpr const char* kPartNames[kParts] = {"embed",   "norm", "qkv",  "rope",   "attention", "o",
                                            "gate_up", "down", "head", "gather", "sample"};

// An Ops that passes everything on and adds up the time by part.
class TimedOps : public Ops {
 public:
  TimedOps(std::unique_ptr<Ops> ops, const ModelConfig& config) : ops_(std::move(ops)), config_(config) {}

  double seconds[kParts] = {};

  DType activation_dtype() const override { return ops_->activation_dtype(); }
  DType residual_dtype() const override { return ops_->residual_dtype(); }
  DType qkv_dtype() const override { return ops_->qkv_dtype(); }
  int tokens_at_once() const override { return ops_->tokens_at_once(); }
  void* allocate(size_t bytes) override { return ops_->allocate(bytes); }
  std::unique_ptr<Weight> pack(const std::vector<WeightPiece>& pieces, WeightFormat format, bool gated) override {
    return ops_->pack(pieces, format, gated);
  }
  void in_turn(Weight& w, const Weight& next) override { ops_->in_turn(w, next); }
  const float* upload(const float* values, int64_t count) override { return ops_->upload(values, count); }
  KvLayer make_kv_layer(int64_t blocks, int kv_heads, int head_dim) override {
    return ops_->make_kv_layer(blocks, kv_heads, head_dim);
  }
  int64_t kv_bytes_per_block(int kv_heads, int head_dim) const override { return ops_->kv_bytes_per_block(kv_heads, head_dim); }
  void embed(Tensor residual, const Weight& table, const int32_t* token_ids, int64_t first) override {
    timed(kEmbed, [&] { ops_->embed(residual, table, token_ids, first); });
  }
  void add_norm(Tensor out, Tensor residual, const Tensor* delta, const float* weight, float epsilon) override {
    timed(kNorm, [&] { ops_->add_norm(out, residual, delta, weight, epsilon); });
  }
  void linear(Tensor out, Tensor x, const Weight& w, const float* bias) override {
    Part part = w.n == config_.vocab ? kHead : w.n == config_.qkv_width() ? kQkv : w.k == config_.ffn ? kDown : kOut;
    timed(part, [&] { ops_->linear(out, x, w, bias); });
  }
  void gated_linear(Tensor out, Tensor x, const Weight& w) override {
    timed(kGateUp, [&] { ops_->gated_linear(out, x, w); });
  }
  void rope_and_cache(Tensor qkv, const AttentionShape& shape, const float* q_norm, const float* k_norm, float epsilon,
                      const float* rotary, KvLayer cache, const Batch& batch) override {
    timed(kRope, [&] { ops_->rope_and_cache(qkv, shape, q_norm, k_norm, epsilon, rotary, cache, batch); });
  }
  void attention(Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache, const Batch& batch) override {
    timed(kAttention, [&] { ops_->attention(out, qkv, shape, cache, batch); });
  }
  void gather_rows(Tensor out, Tensor x, const int32_t* rows) override {
    timed(kGather, [&] { ops_->gather_rows(out, x, rows); });
  }
  void sample(Tensor logits, const Sampling& sampling, const Sampled& sampled) override {
    timed(kSample, [&] { ops_->sample(logits, sampling, sampled); });
  }
  void end_step() override { ops_->end_step(); }

 private:
  template <typename Call>
  void timed(Part part, Call&& call) {
    Clock::time_point start = Clock::now();
    call();
    seconds[part] += std::chrono::duration<double>(Clock::now() - start).count();
  }

  std::unique_ptr<Ops> ops_;
  const ModelConfig config_;
};

constexpr int kContext = 256;  // of a decoding sequence

ModelConfig small_model() {
  ModelConfig config;
  config.layers = 30, config.hidden = 576, config.heads = 9, config.kv_heads = 3, config.head_dim = 64;
  config.ffn = 1536, config.vocab = 49152, config.attention_scale = 0.125f;
  return config;
}

// What embedding and head are held as: no less than 8 bits, as the loader has it.
WeightFormat head_format(WeightFormat format) {
  if (format == WeightFormat::int4_groups) return WeightFormat::int8_groups;
  return format == WeightFormat::int4 ? WeightFormat::int8 : format;
}

void load(Decoder& decoder, const ModelConfig& c, WeightFormat format) {
  std::minstd_rand random(7);
  auto give = [&](const std::string& name, std::vector<int64_t> heights, int64_t k) {
    std::vector<std::vector<float>> memory;
    std::vector<WeightPiece> pieces;
    for (int64_t n : heights) {
      const float scale = k == 1 ? 0.1f : 1.7f / std::sqrt(float(k)), mean = k == 1 ? 1 : 0;
      memory.emplace_back(size_t(n * k));
      for (float& value : memory.back()) value = mean + scale * (float(random() >> 7) * 0x1p-23f - 1);
      pieces.push_back({SourceFormat::f32, n, k, memory.back().data()});
    }
    decoder.load(name, pieces, k == 1 ? WeightFormat::f32 : name == "embed" ? head_format(format) : format);
  };
  const int64_t queries = int64_t(c.heads) * c.head_dim, keys = int64_t(c.kv_heads) * c.head_dim;
  give("embed", {c.vocab}, c.hidden);
  give("final_norm", {c.hidden}, 1);
  for (int i = 0; i < c.layers; ++i) {
    const std::string prefix = "layers." + std::to_string(i) + ".";
    give(prefix + "attn_norm", {c.hidden}, 1);
    give(prefix + "qkv", {queries, keys, keys}, c.hidden);
    give(prefix + "o", {c.hidden}, queries);
    give(prefix + "ffn_norm", {c.hidden}, 1);
    give(prefix + "gate_up", {c.ffn, c.ffn}, c.hidden);
    give(prefix + "down", {c.hidden}, c.ffn);
  }
}

// A step of `sequences` sequences that each compute their last `count` tokens of a context.
struct Step {
  std::vector<int32_t> ids, positions, slots, starts{0}, contexts, tables, rows, top_k, draw, top, target;
  std::vector<float> zero, one;
  std::vector<uint64_t> seeds;
  Batch batch;
  Sampling sampling;

  Step(int sequences, int count, int context, int vocab) {
    const int width = (context + kBlockTokens - 1) / kBlockTokens;
    for (int s = 0; s < sequences; ++s) {
      for (int b = 0; b < width; ++b) tables.push_back(s * width + b);
      for (int p = context - count; p < context; ++p) {
        ids.push_back((s * 7919 + p * 104729) % vocab);
        positions.push_back(p);
        slots.push_back((s * width + p / kBlockTokens) * kBlockTokens + p % kBlockTokens);
      }
      rows.push_back(int32_t(ids.size()) - 1);
      starts.push_back(int32_t(ids.size()));
      contexts.push_back(context);
    }
    const size_t n = rows.size();
    zero.assign(n, 0), one.assign(n, 1), top_k.assign(n, 0), draw.assign(n, 0), top.assign(n, -1), target.assign(n, -1);
    seeds.assign(n, 1);
    batch = {int(ids.size()), sequences,       int(n),        ids.data(), positions.data(), slots.data(),
             starts.data(),   contexts.data(), tables.data(), width,      rows.data()};
    sampling.temperature = zero.data(), sampling.top_p = one.data(), sampling.min_p = zero.data();
    sampling.top_k = top_k.data(), sampling.repetition_penalty = one.data(), sampling.presence_penalty = zero.data();
    sampling.frequency_penalty = zero.data(), sampling.seed = seeds.data(), sampling.draw = draw.data();
    sampling.top_logprobs = top.data(), sampling.target = target.data();
  }
};

// The median by part, and of their sum, of several runs.
void bench(Decoder& decoder, TimedOps& ops, const Step& step, double rate) {
  const size_t n = step.rows.size();
  std::vector<int32_t> token(n), top_ids(n * kMaxTopLogprobs), status(n);
  std::vector<float> logprob(n), top_logprobs(n * kMaxTopLogprobs);
  const Sampled sampled{token.data(), logprob.data(), top_ids.data(), top_logprobs.data(), status.data()};
  std::vector<double> times[kParts + 1];
  const Clock::time_point begin = Clock::now();
  while (times[0].size() < 5 || (times[0].size() < 200 && Clock::now() - begin < std::chrono::milliseconds(2500))) {
    std::fill_n(ops.seconds, kParts, 0.0);
    decoder.forward(step.batch, step.sampling, sampled);
    double total = 0;
    for (int part = 0; part < kParts; ++part) {
      times[part].push_back(ops.seconds[part]);
      total += ops.seconds[part];
    }
    times[kParts].push_back(total);
  }
  auto median = [](std::vector<double>& values) {
    std::nth_element(values.begin(), values.begin() + long(values.size() / 2), values.end());
    return values[values.size() / 2];
  };
  const ModelConfig& c = decoder.config();
  const double rows = step.batch.tokens, outs = double(step.rows.size());
  const double hidden = c.hidden, queries = double(c.heads) * c.head_dim;
  double pairs = 0;
  for (int32_t position : step.positions) pairs += position + 1;
  double flop[kParts] = {};
  flop[kQkv] = 2 * rows * hidden * c.qkv_width() * c.layers;
  const double passes = rows * (c.layers - 1) + outs;  // the last layer ends with the rows that are sampled
  flop[kOut] = 2 * passes * queries * hidden;
  flop[kGateUp] = 4 * passes * hidden * c.ffn;
  flop[kDown] = 2 * passes * hidden * c.ffn;
  flop[kHead] = 2 * outs * hidden * c.vocab;
  double wanted = 0;  // of the last layer
  for (int32_t row : step.rows) wanted += step.positions[size_t(row)] + 1;
  flop[kAttention] = 4 * (pairs * (c.layers - 1) + wanted) * queries;
  double sum = 0;
  for (double part : flop) sum += part;
  const double total = median(times[kParts]);
  std::printf("%d tokens of %d sequences: %.2f ms, %.0f GFLOP/s, %.0f %% of the bf16 rate\n", step.batch.tokens,
              step.batch.sequences, total * 1e3, sum / total / 1e9, 100 * sum / total / rate);
  for (int part = 0; part < kParts; ++part) {
    const double time = median(times[part]);
    std::printf("  %-10s %8.2f ms %4.0f %%", kPartNames[part], time * 1e3, 100 * time / total);
    if (flop[part] > 0)
      std::printf("  %5.0f GFLOP/s, %3.0f %% of the rate", flop[part] / time / 1e9, 100 * flop[part] / time / rate);
    std::printf("\n");
  }
}

int run(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "bf16";
  const WeightFormat format = name == "f32"           ? WeightFormat::f32
                              : name == "int8"        ? WeightFormat::int8
                              : name == "int8_groups" ? WeightFormat::int8_groups
                              : name == "int4"        ? WeightFormat::int4
                              : name == "int4_groups" ? WeightFormat::int4_groups
                                                      : WeightFormat::bf16;
  std::vector<int> counts;
  for (int i = 2; i < argc; ++i) counts.push_back(std::atoi(argv[i]));
  if (counts.empty()) counts = {128, 1024, -1, -32};
  const ModelConfig config = small_model();
  Limits limits;
  int64_t blocks = 1;
  for (int count : counts) {
    limits.max_tokens = std::max(limits.max_tokens, std::abs(count));
    limits.max_sequences = std::max(limits.max_sequences, -count);
    limits.max_context = std::max(limits.max_context, std::max(kContext, count));
    blocks =
        std::max<int64_t>(blocks, count > 0 ? (count + kBlockTokens - 1) / kBlockTokens : -count * kContext / kBlockTokens);
  }
  limits.max_sequences = std::max(limits.max_sequences, 1);
  limits.max_rows = limits.max_sequences;
  limits.max_blocks_per_sequence = limits.max_context / kBlockTokens + 1;
  std::vector<float> rotary(size_t(limits.max_context) * size_t(config.head_dim));
  for (size_t p = 0; p < size_t(limits.max_context); ++p)
    for (size_t i = 0; i < 32; ++i) {
      float angle = float(p) * std::pow(10000.f, -float(i) / 32);
      rotary[p * 64 + i] = std::cos(angle);
      rotary[p * 64 + 32 + i] = std::sin(angle);
    }
  const DType dtype = format == WeightFormat::f32 ? DType::f32 : DType::bf16;
  const int threads = int(std::max(1u, std::thread::hardware_concurrency()));
  cpu::OpsLimits ops_limits;
  ops_limits.max_tokens = limits.max_tokens, ops_limits.max_sequences = limits.max_sequences;
  ops_limits.max_rows = limits.logit_rows(), ops_limits.max_context = limits.max_context;
  ops_limits.heads = config.heads, ops_limits.kv_heads = config.kv_heads, ops_limits.head_dim = config.head_dim;
  ops_limits.vocab = config.vocab, ops_limits.max_k = config.ffn;
  auto timed = std::make_unique<TimedOps>(cpu::make_ops(dtype, threads, ops_limits), config);
  TimedOps& ops = *timed;
  Decoder decoder(std::move(timed), config, limits, rotary.data());
  load(decoder, config, format);
  decoder.finish(blocks);
  ThreadPool pool(threads);
  for (int count : counts) {
    std::vector<double> rates;
    for (int i = 0; i < 7; ++i) rates.push_back(cpu::matrix_rate(cpu::MatrixKind::bf16, pool, 0.05));
    std::nth_element(rates.begin(), rates.begin() + 3, rates.end());
    std::printf("%s, %s, %d threads, bf16 rate %.0f GFLOP/s; ", name.c_str(), name_of(selected_isa()), threads, rates[3] / 1e9);
    bench(decoder, ops, count > 0 ? Step(1, count, count, config.vocab) : Step(-count, 1, kContext, config.vocab), rates[3]);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace oarlock

int main(int argc, char** argv) {
  try {
    return oarlock::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "decoder_bench: %s\n", error.what());
    return 1;
  }
}
