// The CUDA executor: a step is copied to the device, run and copied back by calls on one stream, and the host waits for the
// last of them in collect.
//
// A step in which every sequence brings one token is padded to the next of a ladder of batch sizes and replayed as a CUDA
// graph, which is captured when its shape comes for the second time: the first time, run call by call, lets every kernel and
// cuBLAS set itself up. Steps with prompts, whose time is that of their kernels, run call by call.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "cuda/elementwise.h"
#include "cuda/ops_cuda.h"
#include "model/executor.h"
#include "model/step_buffers.h"

namespace oarlock {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBehind = Staging::kSlots;
constexpr auto kSpin = std::chrono::milliseconds(30);
constexpr auto kLook = std::chrono::milliseconds(1);      // between two looks at the other ranks
constexpr auto kGrace = std::chrono::milliseconds(1000);  // for the device, which knows whom it waits for, to give up first
constexpr double kPatience = 0.02;                        // seconds that a rank polls for the next plan
constexpr int64_t kLeastSpared = int64_t(24) << 20;  // bytes a layer: reading shared blocks once costs a kernel and a merge
constexpr int64_t kReserve = int64_t(512) << 20;     // for graphs, and for plans with penalties, bias and masks

// Batch sizes that have a graph: a step reads its weights anyway, so that some padding costs little.
int padded_batch(int sequences, int largest) {
  const int step = sequences <= 8 ? 1 : sequences <= 32 ? 8 : sequences <= 64 ? 16 : sequences <= 256 ? 32 : 64;
  int padded = (sequences + step - 1) / step * step;
  if (sequences <= 8)
    for (padded = 1; padded < sequences;) padded *= 2;
  return std::min(padded, largest);
}

// Block tables of few widths, so that growing contexts do not each have a graph of their own.
int padded_stride(int width, int largest) {
  int padded = 16;
  while (padded < width) padded *= 4;
  return std::min(padded, largest);
}

// What a step leaves, in pinned memory and on the device: token, logprob and status of each row, then the alternatives.
struct ResultBuffers {
  uint8_t *host[kBehind] = {}, *device = nullptr;
  size_t alternatives = 0;  // offset of top_ids

  void allocate(cuda::CudaOps& ops, int64_t rows) {
    alternatives = size_t(rows) * 12;
    const size_t bytes = alternatives + size_t(rows) * kMaxTopLogprobs * 8;
    device = static_cast<uint8_t*>(ops.allocate(bytes));
    for (uint8_t*& memory : host) {
      OARLOCK_CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&memory), bytes, cudaHostAllocDefault));
    }
  }
  ~ResultBuffers() {
    for (uint8_t* memory : host) cudaFreeHost(memory);
  }

  // Of a step of `rows` rows, at `base`.
  Sampled at(uint8_t* base, int64_t rows) const {
    auto* words = reinterpret_cast<int32_t*>(base);
    auto* tops = reinterpret_cast<int32_t*>(base + alternatives);
    return {words, reinterpret_cast<float*>(words + rows), tops, reinterpret_cast<float*>(tops + rows * kMaxTopLogprobs),
            words + 2 * rows};
  }
};

class CudaExecutor : public Executor {
 public:
  CudaExecutor(std::unique_ptr<cuda::CudaOps> ops, const ModelConfig& config, const Limits& limits, const float* rotary,
               const CudaOptions& options, std::shared_ptr<Comm> comm)
      : ops_(*ops),
        graphs_on_(options.graphs),
        shares_prefixes_(!options.batch_invariant && config.sliding_window == 0),
        comm_(std::move(comm)),
        step_limit_(options.step_limit),
        decoder_(std::make_unique<Decoder>(std::move(ops), config, limits, rotary)) {
    if (comm_) {
      channel_.emplace(comm_, limits);
      comm_->set_patience(kPatience);
    }
    for (Slot& slot : slots_) OARLOCK_CUDA_CHECK(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming));
  }

  ~CudaExecutor() override {
    // Nothing of a device that has stopped answering can be freed without waiting for it.
    if (lost_) {
      static_cast<void>(decoder_.release());
      static_cast<void>(buffers_.release());
      static_cast<void>(results_.release());
      for (auto& graph : graphs_) static_cast<void>(graph.second.release());
      return;
    }
    cudaStreamSynchronize(ops_.stream());
    for (Slot& slot : slots_) cudaEventDestroy(slot.done);
  }

  Decoder& decoder() override { return *decoder_; }
  void* stream() const override { return ops_.stream(); }

  int64_t free_memory() const override {
    const ModelConfig& c = decoder_->config();
    const Limits& limits = decoder_->limits();
    const int64_t token = int64_t(c.hidden) * 10 + int64_t(c.qkv_width()) * 4 + int64_t(c.heads) * c.head_dim * 2 + c.ffn * 2;
    const int64_t row = int64_t(c.hidden) * 4 + int64_t(c.heads) * c.head_dim * 2 + int64_t(c.vocab) * 4;
    const int64_t workspace = limits.max_tokens * token + limits.logit_rows() * row + kReserve;
    return std::max<int64_t>(0, int64_t(ops_.free_memory()) - workspace);
  }

  void finish(int64_t blocks) override {
    decoder_->finish(blocks);
    const Limits& limits = decoder_->limits();
    buffers_->allocate(decoder_->config(), limits);
    results_->allocate(ops_, limits.max_rows);
    const size_t rows = size_t(limits.max_rows);
    token_.resize(rows);
    status_.resize(rows);
    logprob_.resize(rows);
    top_ids_.resize(rows * kMaxTopLogprobs);
    top_logprobs_.resize(rows * kMaxTopLogprobs);
    result_.sampled = {token_.data(), logprob_.data(), top_ids_.data(), top_logprobs_.data(), status_.data()};
    least_spared_ = kLeastSpared * decoder_->config().layers / decoder_->bytes_per_block();
    largest_graph_ = std::min({limits.max_sequences, limits.max_tokens, limits.logit_rows()});
  }

  void submit(const Plan& plan) override {
    require(behind_.size() < kBehind, "a third step was submitted; ", kBehind, " may be on their way");
    check_ready();
    check(plan, decoder_->config(), decoder_->limits(), decoder_->blocks(), drawn_);
    if (!channel_) return enqueue(plan);
    Plan led;
    with_ranks([&] { led = channel_->lead(plan); });
    enqueue(led);
  }

  StepResult collect() override {
    if (behind_.empty()) return result_;
    const int index = behind_.front();
    const Slot& slot = slots_[index];
    finish_oldest();
    const Sampled from = results_->at(results_->host[index], slot.padded_rows);
    const size_t rows = size_t(slot.rows);
    std::copy_n(from.token, rows, token_.data());
    std::copy_n(from.logprob, rows, logprob_.data());
    std::copy_n(from.status, rows, status_.data());
    if (slot.alternatives) {
      std::copy_n(from.top_ids, rows * kMaxTopLogprobs, top_ids_.data());
      std::copy_n(from.top_logprobs, rows * kMaxTopLogprobs, top_logprobs_.data());
    }
    result_.rows = slot.rows;
    return result_;
  }

  void lead(Order order) override {
    require(channel_.has_value(), "the model is not split over ranks");
    check_ready();
    with_ranks([&] { channel_->lead(order); });
  }

  Order follow() override {
    require(channel_.has_value(), "the model is not split over ranks");
    check_ready();
    Plan plan;
    Order order;
    with_ranks([&] { order = channel_->follow(plan); });
    const size_t most = order == Order::step ? kBehind - 1 : 0;
    while (behind_.size() > most) finish_oldest();
    if (order == Order::step) enqueue(plan);
    return order;
  }

  double exchange_seconds() const override { return ops_.ranks() != nullptr ? ops_.ranks()->seconds() : 0; }

 private:
  struct Slot {
    cudaEvent_t done = nullptr;
    int rows = 0, padded_rows = 0;
    bool alternatives = false;
  };

  void check_ready() const {
    require(decoder_->blocks() > 0, "the model has not been finished");
    if (lost_) throw DeviceError("the device has failed; no more steps can be run");
  }

  // Every rank of a split model does this alike with a step's plan.
  void enqueue(const Plan& plan) {
    if (ops_.ranks() != nullptr) ops_.ranks()->begin_step();
    drawn_ = plan.batch.rows;
    if (!buffers_->fits(plan)) {
      ops_.synchronize();
      graphs_.clear();
      buffers_->grow(plan);
    }
    const int index = next_;
    next_ = (next_ + 1) % kBehind;
    Slot& slot = slots_[index];
    const bool replayed = graphs_on_ && plan.batch.tokens == plan.batch.sequences && plan.batch.rows == plan.batch.sequences &&
                          plan.batch.sequences <= largest_graph_;
    const PrefixGroups groups =
        shares_prefixes_ ? find_prefix_groups(plan.batch, least_spared_, cuda::kMaxGroups) : PrefixGroups();
    StepShape shape = exact_shape(plan);
    shape.groups = groups.groups() > 0 ? cuda::kMaxGroups : 0;
    if (replayed) pad(shape);
    const DeviceStep step = buffers_->send(ops_.stream(), index, plan, groups, shape);
    const Sampled sampled = results_->at(results_->device, shape.rows);
    if (replayed) {
      replay(shape, step, sampled);
    } else {
      forward(step, sampled);
    }
    slot.rows = plan.batch.rows;
    slot.padded_rows = shape.rows;
    const int32_t* wanted = plan.sampling.top_logprobs;  // null on other ranks than 0
    slot.alternatives = wanted != nullptr && std::any_of(wanted, wanted + slot.rows, [](int32_t count) { return count > 0; });
    copy_back(results_->host[index], results_->device, size_t(shape.rows) * 12);
    if (slot.alternatives) {
      copy_back(results_->host[index] + results_->alternatives, results_->device + results_->alternatives,
                size_t(shape.rows) * kMaxTopLogprobs * 8);
    }
    OARLOCK_CUDA_CHECK(cudaEventRecord(slot.done, ops_.stream()));
    behind_.push_back(index);
  }

  static StepShape exact_shape(const Plan& plan) {
    const Batch& b = plan.batch;
    const Sampling& s = plan.sampling;
    return {b.tokens,
            b.sequences,
            b.rows,
            b.block_table_stride,
            s.history_starts != nullptr,
            s.bias_starts != nullptr,
            s.mask_rows != nullptr,
            is_settled(b),
            0,
            b.all_plain};
  }

  void pad(StepShape& shape) const {
    shape.tokens = shape.sequences = shape.rows = padded_batch(shape.sequences, largest_graph_);
    shape.stride = padded_stride(shape.stride, decoder_->limits().max_blocks_per_sequence);
  }

  void replay(const StepShape& shape, const DeviceStep& step, const Sampled& sampled) {
    auto found = graphs_.find(shape);
    if (found == graphs_.end()) {
      forward(step, sampled);
      graphs_.emplace(shape, nullptr);
      return;
    }
    if (found->second == nullptr) {
      found->second = std::make_unique<cuda::Graph>(ops_.stream(), [&] { forward(step, sampled); });
    }
    found->second->launch(ops_.stream());
  }

  // The step before leaves its tokens where this one will, so that they are still there when it begins.
  void forward(const DeviceStep& step, const Sampled& sampled) {
    cuda::feed_tokens(ops_.stream(), step.token_ids, step.token_sources, sampled.token, step.batch.tokens);
    decoder_->forward(step.batch, step.sampling, sampled);
  }

  void copy_back(void* to, const void* from, size_t bytes) {
    if (bytes > 0) OARLOCK_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, ops_.stream()));
  }

  void finish_oldest() {
    wait(slots_[behind_.front()].done);
    behind_.pop_front();
    if (ops_.ranks() != nullptr) with_ranks([&] { ops_.ranks()->check(); });
  }

  // Once a rank is lost, so is everything that this device still waits for.
  template <typename Talk>
  void with_ranks(Talk&& talk) {
    try {
      talk();
    } catch (const CommError&) {
      lose();
      throw;
    }
  }

  // Nothing more can be had of the device, or of the ranks.
  void lose() {
    lost_ = true;
    behind_.clear();
    if (ops_.ranks() != nullptr) ops_.ranks()->abort();
  }

  // Waits for a step without holding a core for one that takes long, and not for ever.
  void wait(cudaEvent_t done) {
    using Seconds = std::chrono::duration<double>;
    const auto start = Clock::now();
    const Seconds limit = comm_ ? std::min<Seconds>(Seconds(comm_->time_limit()) + kGrace, step_limit_) : step_limit_;
    auto looked = start;
    while (true) {
      const cudaError_t status = cudaEventQuery(done);
      if (status == cudaSuccess) return;
      const auto now = Clock::now();
      const bool failed = status != cudaErrorNotReady, late = now - start > limit;
      if (comm_ && (failed || late || now - looked > kLook)) {
        looked = now;
        with_ranks([&] {  // a rank that is gone takes what is enqueued here with it, and is the better reason
          comm_->check();
          if (failed || late) ops_.ranks()->check();
        });
      }
      if (failed || late) {
        lose();
        if (failed) cuda::check_call(status, "a step");
        throw DeviceError(concat("a step has not come to its end within ", limit.count(), " s"));
      }
      if (now - start < kSpin) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
  }

  cuda::CudaOps& ops_;  // the decoder's
  const bool graphs_on_, shares_prefixes_;
  const std::shared_ptr<Comm> comm_;  // null when the model is not split
  std::optional<PlanChannel> channel_;
  const std::chrono::duration<double> step_limit_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<StepBuffers> buffers_ = std::make_unique<StepBuffers>();
  std::unique_ptr<ResultBuffers> results_ = std::make_unique<ResultBuffers>();
  std::map<StepShape, std::unique_ptr<cuda::Graph>> graphs_;  // null: the shape has been seen once
  int largest_graph_ = 0;
  int64_t least_spared_ = 0;  // blocks
  int drawn_ = 0;             // rows of the last step that was submitted
  Slot slots_[kBehind];
  int next_ = 0;
  std::deque<int> behind_;  // slots of the steps on their way, oldest first
  bool lost_ = false;
  StepResult result_;
  std::vector<int32_t> token_, status_, top_ids_;
  std::vector<float> logprob_, top_logprobs_;
};

}  // namespace

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) cudaGetLastError();
  return count;
}

std::unique_ptr<Executor> make_cuda_executor(const ModelConfig& config, const Limits& limits, const float* rotary,
                                             const CudaOptions& options, std::shared_ptr<Comm> comm) {
  Limits wide = limits;
  // The whole head is read for each group of rows, so a step's usual rows go at once.
  wide.logits_at_once = std::max(limits.logits_at_once, limits.max_sequences);
  const cuda::OpsLimits sizes{limits.max_tokens,  limits.max_sequences,    config.heads, config.head_dim,
                              config.qkv_width(), 2 * int64_t(config.ffn), config.vocab};
  auto ops = std::make_unique<cuda::CudaOps>(options.device, options.dtype, sizes, options.batch_invariant);
  if (comm) {
    ops->join(comm, {limits.max_tokens, wide.logit_rows(), config.hidden, options.batch_invariant, config.vocab_starts,
                     options.nccl_library, cuda::Transport::automatic});
  }
  return std::make_unique<CudaExecutor>(std::move(ops), config, wide, rotary, options, std::move(comm));
}

}  // namespace oarlock
