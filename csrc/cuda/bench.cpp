// Times whole decode and prefill steps of two model shapes with random weights, as the decoder runs them, captured in a
// graph; and, for each kind of call, what a step costs less without it. Floors are bytes over the read bandwidth and products
// over the matrix rate that are given. Usage: bench [read GB/s] [TFLOP/s] [8b|0.5b|all] [batches, comma-separated, or prefill]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>

#include "base/error.h"
#include "cuda/ops_cuda.h"
#include "cuda/weights.h"
#include "model/decoder.h"

using namespace oarlock;
using namespace oarlock::cuda;

namespace {

enum Kind { kEmbed, kNorm, kQkv, kRope, kAttention, kO, kGateUp, kDown, kHead, kSample, kKinds };
const char* const kNames[kKinds] = {"embed", "norm", "qkv", "rope", "attention", "o", "gate_up", "down", "head", "sample"};

// CudaOps whose weights are random whatever is packed, and that can leave out one kind of call.
class BenchOps : public CudaOps {
 public:
  BenchOps(const OpsLimits& limits, const ModelConfig& config) : CudaOps(0, DType::bf16, limits, false), config_(config) {}
  int left_out = -1, only = -1;

  std::unique_ptr<Weight> pack(const std::vector<WeightPiece>& pieces, WeightFormat, bool) override {
    int64_t n = 0;
    for (const auto& piece : pieces) n += piece.n;
    return random_weight(n, pieces[0].k, 1.f / std::sqrt(float(pieces[0].k)), ++seed_);
  }
  KvLayer make_kv_layer(int64_t blocks, int kv_heads, int head_dim) override {
    KvLayer layer = CudaOps::make_kv_layer(blocks, kv_heads, head_dim);
    const int64_t count = blocks * kv_bytes_per_block(kv_heads, head_dim) / 4;
    fill_random(stream(), layer.keys, DType::bf16, count, 1, ++seed_);
    fill_random(stream(), layer.values, DType::bf16, count, 1, ++seed_);
    return layer;
  }
  void embed(Tensor residual, const Weight& table, const int32_t* ids, int64_t first) override {
    if (runs(kEmbed)) CudaOps::embed(residual, table, ids, first);
  }
  void add_norm(Tensor out, Tensor residual, const Tensor* delta, const float* weight, float epsilon) override {
    if (runs(kNorm)) CudaOps::add_norm(out, residual, delta, weight, epsilon);
  }
  void linear(Tensor out, Tensor x, const Weight& w, const float* bias) override {
    const Kind kind = w.n == config_.vocab ? kHead : w.n == config_.qkv_width() ? kQkv : w.k == config_.ffn ? kDown : kO;
    if (runs(kind)) CudaOps::linear(out, x, w, bias);
  }
  void gated_linear(Tensor out, Tensor x, const Weight& w) override {
    if (runs(kGateUp)) CudaOps::gated_linear(out, x, w);
  }
  void rope_and_cache(Tensor qkv, const AttentionShape& shape, const float* q, const float* k, float epsilon,
                      const float* rotary, KvLayer cache, const Batch& batch) override {
    if (runs(kRope)) CudaOps::rope_and_cache(qkv, shape, q, k, epsilon, rotary, cache, batch);
  }
  void attention(Tensor out, Tensor qkv, const AttentionShape& shape, KvLayer cache, const Batch& batch) override {
    if (runs(kAttention)) CudaOps::attention(out, qkv, shape, cache, batch);
  }
  void sample(Tensor logits, const Sampling& sampling, const Sampled& sampled) override {
    if (runs(kSample)) CudaOps::sample(logits, sampling, sampled);
  }

 private:
  bool runs(Kind kind) const { return kind != left_out && (only < 0 || kind == only); }
  const ModelConfig config_;
  uint64_t seed_ = 0;
};

struct Bench {
  double bandwidth, rate;  // bytes/s, FLOP/s
  ModelConfig config;
  Limits limits;
  BenchOps* ops = nullptr;
  std::unique_ptr<Decoder> decoder;
  Sampled sampled;

  Bench(const char* name, double bandwidth, double rate, const ModelConfig& shape)
      : bandwidth(bandwidth), rate(rate), config(shape) {
    limits = {8192, 256, 256, 130, 8320, 256};
    OpsLimits sizes{limits.max_tokens,  limits.max_sequences,    config.heads, config.head_dim,
                    config.qkv_width(), 2 * int64_t(config.ffn), config.vocab};
    auto owned = std::make_unique<BenchOps>(sizes, config);
    ops = owned.get();
    std::vector<float> rotary(size_t(limits.max_context) * size_t(config.head_dim), 0.5f), ones(size_t(1) << 17, 1.f);
    decoder = std::make_unique<Decoder>(std::move(owned), config, limits, rotary.data());
    auto matrix = [&](const std::string& part, int64_t n, int64_t k) {
      decoder->load(part, {{SourceFormat::bf16, n, k, nullptr}}, WeightFormat::keep);
    };
    auto vector = [&](const std::string& part, int64_t n) {
      decoder->load(part, {{SourceFormat::f32, n, 1, ones.data()}}, WeightFormat::keep);
    };
    matrix("embed", config.vocab, config.hidden);
    if (config.hidden > 1000) matrix("lm_head", config.vocab, config.hidden);
    vector("final_norm", config.hidden);
    for (int i = 0; i < config.layers; ++i) {
      const std::string layer = "layers." + std::to_string(i) + ".";
      vector(layer + "attn_norm", config.hidden);
      vector(layer + "ffn_norm", config.hidden);
      matrix(layer + "qkv", config.qkv_width(), config.hidden);
      if (config.hidden < 1000) vector(layer + "qkv_bias", config.qkv_width());
      matrix(layer + "o", config.hidden, int64_t(config.heads) * config.head_dim);
      matrix(layer + "gate_up", 2 * int64_t(config.ffn), config.hidden);
      matrix(layer + "down", config.hidden, config.ffn);
    }
    decoder->finish(256 * 10);
    auto ints = [&](int64_t count) { return static_cast<int32_t*>(ops->allocate(size_t(count) * 4)); };
    auto floats = [&](int64_t count) { return static_cast<float*>(ops->allocate(size_t(count) * 4)); };
    const int64_t tops = int64_t(limits.max_rows) * kMaxTopLogprobs;
    sampled = {ints(limits.max_rows), floats(limits.max_rows), ints(tops), floats(tops), ints(limits.max_rows)};
    std::printf("\n%s: %.2f GB of weights a step\n", name, double(decoder->step_weight_bytes()) / 1e9);
  }

  const int32_t* upload(const std::vector<int32_t>& values) {
    auto* memory = static_cast<int32_t*>(ops->allocate(values.size() * 4));
    OARLOCK_CUDA_CHECK(cudaMemcpy(memory, values.data(), values.size() * 4, cudaMemcpyHostToDevice));
    OARLOCK_CUDA_CHECK(cudaDeviceSynchronize());
    return memory;
  }

  // `sequences` of `fresh` new tokens after `before` cached ones.
  Batch batch(int sequences, int fresh, int before) {
    std::vector<int32_t> ids, positions, slots, starts = {0}, contexts, tables, rows;
    const int blocks = (before + fresh + kBlockTokens - 1) / kBlockTokens;
    for (int s = 0; s < sequences; ++s) {
      for (int t = 0; t < fresh; ++t) {
        ids.push_back((s * 7919 + t * 104729) % config.vocab);
        positions.push_back(before + t);
        slots.push_back((s * blocks + (before + t) / kBlockTokens) * kBlockTokens + (before + t) % kBlockTokens);
      }
      starts.push_back(int(ids.size()));
      contexts.push_back(before + fresh);
      for (int b = 0; b < blocks; ++b) tables.push_back(s * blocks + b);
      rows.push_back(int(ids.size()) - 1);
    }
    Batch out;
    out.tokens = int(ids.size());
    out.sequences = out.rows = sequences;
    out.token_ids = upload(ids);
    out.positions = upload(positions);
    out.slots = upload(slots);
    out.query_starts = upload(starts);
    out.context_lens = upload(contexts);
    out.block_tables = upload(tables);
    out.block_table_stride = blocks;
    out.sample_rows = upload(rows);
    out.settled = fresh == 1;
    return out;
  }

  // Median of the milliseconds that each of `count` runs takes on the device.
  double time(int count, const std::function<void()>& run) {
    cudaEvent_t before, after;
    OARLOCK_CUDA_CHECK(cudaEventCreate(&before));
    OARLOCK_CUDA_CHECK(cudaEventCreate(&after));
    std::vector<float> times;
    for (int i = 0; i < count + 2; ++i) {
      OARLOCK_CUDA_CHECK(cudaEventRecord(before, ops->stream()));
      run();
      OARLOCK_CUDA_CHECK(cudaEventRecord(after, ops->stream()));
      OARLOCK_CUDA_CHECK(cudaEventSynchronize(after));
      float ms = 0;
      OARLOCK_CUDA_CHECK(cudaEventElapsedTime(&ms, before, after));
      if (i >= 2) times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  double graph_time(const Batch& b, int left_out, int only = -1) {
    ops->left_out = left_out;
    ops->only = only;
    Graph graph(ops->stream(), [&] { decoder->forward(b, {}, sampled); });
    ops->left_out = ops->only = -1;
    return time(9, [&] { graph.launch(ops->stream()); });
  }

  void decode(int sequences, int context) {
    const Batch b = batch(sequences, 1, context - 1);
    decoder->forward(b, {}, sampled);
    ops->synchronize();
    const double kv = double(sequences) * context / kBlockTokens * double(decoder->bytes_per_block());
    const double weights = double(decoder->step_weight_bytes());
    const double products = std::max(weights / bandwidth, weights / 2 * 2 * sequences / rate) * 1e3;
    const double floor = products + kv / bandwidth * 1e3, ms = graph_time(b, -1);
    std::printf("decode batch %3d context %d: %.3f ms, floor %.3f, %.0f %%\n  without (in ms):", sequences, context, ms, floor,
                100 * floor / ms);
    for (int kind = 0; kind < kKinds; ++kind) std::printf(" %s -%.3f;", kNames[kind], ms - graph_time(b, kind));
    std::printf("\n  alone (in ms):");
    for (int kind = 0; kind < kKinds; ++kind) std::printf(" %s %.3f;", kNames[kind], graph_time(b, -1, kind));
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 5; ++i) decoder->forward(b, {}, sampled);
    const double host = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 5 * 1e3;
    ops->synchronize();
    std::printf("\n  floor of attention %.3f; without a graph the host takes %.2f ms, the step %.3f\n", kv / bandwidth * 1e3,
                host, time(5, [&] { decoder->forward(b, {}, sampled); }));
    std::fflush(stdout);
  }

  void prefill(int tokens) {
    const Batch b = batch(1, tokens, 0);
    decoder->forward(b, {}, sampled);
    ops->synchronize();
    const double weights = double(decoder->step_weight_bytes()), head = double(config.vocab) * config.hidden * 2;
    const double attention = 2.0 * config.layers * config.heads * config.head_dim * double(tokens) * tokens / rate * 1e3;
    const double floor = std::max(weights / bandwidth, (weights - head) * tokens / rate) * 1e3 + attention;
    const double ms = time(5, [&] { decoder->forward(b, {}, sampled); });
    std::printf("prefill %d: %.3f ms, as a graph %.3f, floor %.2f, %.0f %%; alone (in ms):", tokens, ms, graph_time(b, -1),
                floor, 100 * floor / ms);
    for (int kind = 0; kind < kKinds; ++kind) std::printf(" %s %.3f;", kNames[kind], graph_time(b, -1, kind));
    std::printf(" floor of attention %.3f\n", attention);
    std::fflush(stdout);
  }

  // Rows of logits, greedy and drawn from their top 90 %.
  void sampling() {
    const int most = limits.max_rows;
    Tensor logits{ops->allocate(size_t(most) * size_t(config.vocab) * 4), DType::f32, most, config.vocab, config.vocab};
    fill_random(ops->stream(), logits.data, DType::bf16, int64_t(most) * config.vocab * 2, 10, 1);
    auto floats = [&](float value) {
      const std::vector<float> values(size_t(most), value);
      return ops->upload(values.data(), most);
    };
    Sampling drawn;
    drawn.temperature = floats(0.8f);
    drawn.top_p = floats(0.9f);
    std::printf("sampling (in us):");
    for (int rows : {1, 32, 256}) {
      logits.rows = rows;
      auto us = [&](const Sampling& s) {
        return time(9,
                    [&] {
                      for (int i = 0; i < 10; ++i) ops->sample(logits, s, sampled);
                    }) *
               100;
      };
      std::printf(" %d rows %.0f greedy, %.0f drawn;", rows, us({}), us(drawn));
    }
    std::printf("\n");
  }
};

ModelConfig shape(int layers, int hidden, int heads, int kv_heads, int head_dim, int ffn, int vocab) {
  ModelConfig c;
  c.layers = layers, c.hidden = hidden, c.heads = heads, c.kv_heads = kv_heads, c.head_dim = head_dim, c.ffn = ffn,
  c.vocab = vocab;
  c.attention_scale = 1.f / std::sqrt(float(head_dim));
  return c;
}

}  // namespace

int main(int count, char** arguments) try {
  const double bandwidth = (count > 1 ? std::atof(arguments[1]) : 4625) * 1e9;
  const double rate = (count > 2 ? std::atof(arguments[2]) : 788) * 1e12;
  const std::string which = count > 3 ? arguments[3] : "all", what = count > 4 ? arguments[4] : "1,32,128,256,prefill";
  auto run = [&](const char* name, const ModelConfig& config, std::initializer_list<int> prompts) {
    Bench bench(name, bandwidth, rate, config);
    for (int batch : {1, 8, 32, 64, 128, 256}) {
      if (("," + what + ",").find("," + std::to_string(batch) + ",") != std::string::npos) bench.decode(batch, 512);
    }
    if (what.find("prefill") != std::string::npos) {
      for (int tokens : prompts) bench.prefill(tokens);
    }
    bench.sampling();
  };
  if (which == "8b-half") run("Llama-3.1-8B, what one of two GPUs has", shape(32, 4096, 16, 4, 128, 7168, 64128), {1024});
  if (which == "8b-half") return 0;
  if (which != "0.5b") run("Llama-3.1-8B", shape(32, 4096, 32, 8, 128, 14336, 128256), {16, 64, 128, 1024, 8192});
  if (which != "8b") run("Qwen2.5-0.5B", shape(24, 896, 14, 2, 64, 4864, 151936), {16, 64, 128, 1024});
  return 0;
} catch (const std::exception& error) {
  std::printf("FAILED: %s\n", error.what());
  return 1;
}
