#include "model/step_buffers.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "base/error.h"
#include "cuda/attention.h"
#include "cuda/device.h"

namespace oarlock {
namespace {

constexpr size_t kAlignment = 64;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Lays arrays out one after the other: values to pinned memory; what it returns is where they will lie on the device.
class Writer {
 public:
  Writer(uint8_t* host, uint8_t* device) : host_(host), device_(device) {}

  // `count` values (all neutral when there are none), then neutral ones up to `padded`.
  template <typename T>
  const T* put(const T* values, int64_t count, int64_t padded, T neutral) {
    T* to = here<T>();
    if (values == nullptr) count = 0;
    if (count > 0) std::memcpy(to, values, size_t(count) * sizeof(T));
    std::fill(to + count, to + padded, neutral);
    return take<T>(padded);
  }

  // Offsets of `count` parts, then empty parts up to `padded`, or parts of one when `rising`.
  const int32_t* put_starts(const int32_t* starts, int count, int padded, bool rising) {
    auto* to = here<int32_t>();
    std::memcpy(to, starts, size_t(count + 1) * sizeof(int32_t));
    for (int i = count + 1; i <= padded; ++i) to[i] = to[i - 1] + int(rising);
    return take<int32_t>(padded + 1);
  }

  const int32_t* put_tables(const Batch& batch, int padded, int stride) {
    auto* to = here<int32_t>();
    const int width = batch.block_table_stride;
    for (int s = 0; s < padded; ++s, to += stride) {
      const int filled = s < batch.sequences ? width : 0;
      if (filled > 0) std::memcpy(to, batch.block_tables + int64_t(s) * width, size_t(filled) * sizeof(int32_t));
      std::fill(to + filled, to + stride, 0);
    }
    return take<int32_t>(int64_t(padded) * stride);
  }

  size_t size() const { return at_; }

 private:
  template <typename T>
  T* here() const {
    return reinterpret_cast<T*>(host_ + at_);
  }
  template <typename T>
  const T* take(int64_t count) {
    const auto* placed = reinterpret_cast<const T*>(device_ + at_);
    at_ += aligned(size_t(count) * sizeof(T));
    return placed;
  }

  uint8_t *host_, *device_;
  size_t at_ = 0;
};

// Two arrays of `entries` elements of four bytes, the second in the upper half of the buffer.
template <typename T>
void send_pairs(cudaStream_t stream, const Staging& staging, int slot, const int32_t* ids, const T* values, int entries) {
  const size_t bytes = size_t(entries) * 4, half = staging.bytes() / 2;
  if (entries == 0) return;
  std::memcpy(staging.host(slot), ids, bytes);
  std::memcpy(staging.host(slot) + half, values, bytes);
  for (size_t from : {size_t(0), half}) {
    OARLOCK_CUDA_CHECK(
        cudaMemcpyAsync(staging.device() + from, staging.host(slot) + from, bytes, cudaMemcpyHostToDevice, stream));
  }
}

}  // namespace

bool StepShape::operator<(const StepShape& other) const {
  auto key = [](const StepShape& s) {
    return std::tie(s.tokens, s.sequences, s.rows, s.stride, s.history, s.bias, s.masks, s.settled, s.groups, s.plain);
  };
  return key(*this) < key(other);
}

Staging::~Staging() { release(); }

void Staging::release() {
  for (uint8_t*& memory : host_) {
    cudaFreeHost(memory);
    memory = nullptr;
  }
  cudaFree(device_);
  device_ = nullptr;
  bytes_ = 0;
}

bool Staging::reserve(size_t bytes) {
  if (bytes <= bytes_) return false;
  const size_t wanted = aligned(std::max({bytes, 2 * bytes_, size_t(1) << 16}));
  release();
  for (uint8_t*& memory : host_) {
    OARLOCK_CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&memory), wanted, cudaHostAllocDefault));
  }
  OARLOCK_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&device_), wanted));
  bytes_ = wanted;
  return true;
}

void StepBuffers::allocate(const ModelConfig& config, const Limits& limits) {
  words_ = (config.vocab + 31) / 32;
  const int64_t tokens = limits.max_tokens, sequences = limits.max_sequences, rows = limits.max_rows;
  const int64_t entries =
      4 * tokens + 4 * sequences + 1 + cuda::kMaxGroups + 1 + sequences * limits.max_blocks_per_sequence + rows * 17 + 2;
  base_.reserve(size_t(entries) * 4 + 32 * kAlignment);
}

bool StepBuffers::fits(const Plan& plan) const {
  return size_t(plan.history_entries) * 8 <= history_.bytes() && size_t(plan.bias_entries) * 8 <= bias_.bytes() &&
         size_t(plan.masks) * size_t(words_) * 4 <= masks_.bytes();
}

void StepBuffers::grow(const Plan& plan) {
  history_.reserve(size_t(plan.history_entries) * 8);
  bias_.reserve(size_t(plan.bias_entries) * 8);
  masks_.reserve(size_t(plan.masks) * size_t(words_) * 4);
}

DeviceStep StepBuffers::send(cudaStream_t stream, int slot, const Plan& plan, const PrefixGroups& groups,
                             const StepShape& shape) {
  const Batch& b = plan.batch;
  const Sampling& s = plan.sampling;
  Writer writer(base_.host(slot), base_.device());
  DeviceStep step;
  step.batch.tokens = shape.tokens;
  step.batch.sequences = shape.sequences;
  step.batch.rows = shape.rows;
  step.batch.block_table_stride = shape.stride;
  step.batch.token_ids = writer.put(b.token_ids, b.tokens, shape.tokens, 0);
  step.token_ids = const_cast<int32_t*>(step.batch.token_ids);
  step.token_sources = writer.put(plan.token_sources, b.tokens, shape.tokens, -1);
  step.batch.positions = writer.put(b.positions, b.tokens, shape.tokens, 0);
  step.batch.slots = writer.put(b.slots, b.tokens, shape.tokens, -1);
  step.batch.query_starts = writer.put_starts(b.query_starts, b.sequences, shape.sequences, true);
  step.batch.context_lens = writer.put(b.context_lens, b.sequences, shape.sequences, 0);
  step.batch.sample_rows = writer.put(b.sample_rows, b.rows, shape.rows, 0);
  step.batch.settled = shape.settled;
  step.batch.all_plain = shape.plain;
  step.batch.groups = shape.groups;
  if (shape.groups > 0) {
    const int members = int(groups.members.size());
    step.batch.shared_blocks = writer.put(groups.shared_blocks.data(), b.sequences, shape.sequences, 0);
    step.batch.group_members = writer.put(groups.members.data(), members, shape.sequences, 0);
    step.batch.group_starts = writer.put_starts(groups.starts.data(), groups.groups(), shape.groups, false);
  }

  auto put_row = [&](auto*& placed, const auto* values, auto neutral) {
    placed = writer.put(values, b.rows, shape.rows, neutral);
  };
  put_row(step.sampling.temperature, s.temperature, 0.f);
  put_row(step.sampling.top_p, s.top_p, 1.f);
  put_row(step.sampling.min_p, s.min_p, 0.f);
  put_row(step.sampling.top_k, s.top_k, 0);
  put_row(step.sampling.seed, s.seed, uint64_t(0));
  put_row(step.sampling.draw, s.draw, 0);
  put_row(step.sampling.top_logprobs, s.top_logprobs, -1);
  put_row(step.sampling.target, s.target, -1);
  if (shape.history) {
    put_row(step.sampling.repetition_penalty, s.repetition_penalty, 1.f);
    put_row(step.sampling.presence_penalty, s.presence_penalty, 0.f);
    put_row(step.sampling.frequency_penalty, s.frequency_penalty, 0.f);
    step.sampling.history_starts = writer.put_starts(s.history_starts, b.rows, shape.rows, false);
    step.sampling.history_ids = reinterpret_cast<int32_t*>(history_.device());
    step.sampling.history_counts = reinterpret_cast<int32_t*>(history_.device() + history_.bytes() / 2);
    send_pairs(stream, history_, slot, s.history_ids, s.history_counts, plan.history_entries);
  }
  if (shape.bias) {
    step.sampling.bias_starts = writer.put_starts(s.bias_starts, b.rows, shape.rows, false);
    step.sampling.bias_ids = reinterpret_cast<int32_t*>(bias_.device());
    step.sampling.bias_values = reinterpret_cast<float*>(bias_.device() + bias_.bytes() / 2);
    send_pairs(stream, bias_, slot, s.bias_ids, s.bias_values, plan.bias_entries);
  }
  if (shape.masks) {
    put_row(step.sampling.mask_rows, s.mask_rows, -1);
    step.sampling.masks = reinterpret_cast<uint32_t*>(masks_.device());
    const size_t bytes = size_t(plan.masks) * size_t(words_) * 4;
    if (bytes > 0) {
      std::memcpy(masks_.host(slot), s.masks, bytes);
      OARLOCK_CUDA_CHECK(cudaMemcpyAsync(masks_.device(), masks_.host(slot), bytes, cudaMemcpyHostToDevice, stream));
    }
  }
  // Last, because it is the part that may be long.
  step.batch.block_tables = writer.put_tables(b, shape.sequences, shape.stride);
  OARLOCK_CUDA_CHECK(cudaMemcpyAsync(base_.device(), base_.host(slot), writer.size(), cudaMemcpyHostToDevice, stream));
  return step;
}

}  // namespace oarlock
