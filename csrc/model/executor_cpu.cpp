// The CPU executor: host memory is device memory, and a step has run when submit returns.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "cpu/ops_cpu.h"
#include "model/executor.h"

namespace oarlock {
namespace {

class CpuExecutor : public Executor {
 public:
  CpuExecutor(std::unique_ptr<Ops> ops, const ModelConfig& config, const Limits& limits, const float* rotary,
              std::shared_ptr<Comm> comm)
      : decoder_(std::move(ops), config, limits, rotary) {
    if (comm) channel_.emplace(std::move(comm), limits);
  }

  Decoder& decoder() override { return decoder_; }

  void finish(int64_t blocks) override {
    decoder_.finish(blocks);
    size_t rows = size_t(decoder_.limits().max_rows);
    token_.resize(rows);
    status_.resize(rows);
    logprob_.resize(rows);
    top_ids_.resize(rows * kMaxTopLogprobs);
    top_logprobs_.resize(rows * kMaxTopLogprobs);
    result_.sampled = {token_.data(), logprob_.data(), top_ids_.data(), top_logprobs_.data(), status_.data()};
  }

  int64_t free_memory() const override { return 0; }

  void submit(const Plan& plan) override {
    require(decoder_.blocks() > 0, "the model has not been finished");
    check(plan, decoder_.config(), decoder_.limits(), decoder_.blocks());
    decoder_.forward(channel_ ? channel_->lead(plan).batch : plan.batch, plan.sampling, result_.sampled);
    result_.rows = plan.batch.rows;
  }

  StepResult collect() override { return result_; }

  void lead(Order order) override {
    require(channel_.has_value(), "the model is not split over ranks");
    channel_->lead(order);
  }

  Order follow() override {
    require(channel_.has_value() && decoder_.blocks() > 0, "the model is not split over ranks, or not finished");
    Plan plan;
    Order order = channel_->follow(plan);
    if (order == Order::step) decoder_.forward(plan.batch, {}, {});
    return order;
  }

 private:
  Decoder decoder_;
  std::optional<PlanChannel> channel_;
  StepResult result_;
  std::vector<int32_t> token_, status_, top_ids_;
  std::vector<float> logprob_, top_logprobs_;
};

}  // namespace

std::unique_ptr<Executor> make_cpu_executor(const ModelConfig& config, const Limits& limits, const float* rotary, DType dtype,
                                            int threads, std::shared_ptr<Comm> comm) {
  cpu::OpsLimits ops;
  ops.comm = comm;
  ops.vocab_starts = config.vocab_starts;
  ops.max_tokens = limits.max_tokens;
  ops.max_sequences = limits.max_sequences;
  ops.max_rows = limits.logit_rows();
  ops.max_context = limits.max_context;
  ops.heads = config.heads;
  ops.kv_heads = config.kv_heads;
  ops.head_dim = config.head_dim;
  ops.vocab = config.vocab;
  ops.max_k = std::max({config.hidden, config.ffn, config.heads * config.head_dim});
  return std::make_unique<CpuExecutor>(cpu::make_ops(dtype, threads, ops), config, limits, rotary, std::move(comm));
}

}  // namespace oarlock
