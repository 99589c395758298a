#include "model/ranks.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace oarlock {
namespace {

constexpr int kHeaderWords = 6;
constexpr float kLeastTemperature = 1e-5f;  // below it the likeliest token is taken (cpu/sampler)

// Whether the row's token is the likeliest of its logits as they are, with nothing to report about it.
bool is_plain(const Sampling& s, int row) {
  return s.temperature[row] < kLeastTemperature && (s.target == nullptr || s.target[row] < 0) &&
         (s.top_logprobs == nullptr || s.top_logprobs[row] < 0) &&
         (s.history_starts == nullptr || s.history_starts[row] == s.history_starts[row + 1]) &&
         (s.bias_starts == nullptr || s.bias_starts[row] == s.bias_starts[row + 1]) &&
         (s.mask_rows == nullptr || s.mask_rows[row] < 0);
}

int64_t words_of_plain(int64_t rows) { return (rows + 3) / 4; }

}  // namespace

PlanChannel::PlanChannel(std::shared_ptr<Comm> comm, const Limits& limits) : comm_(std::move(comm)) {
  int64_t tokens = limits.max_tokens, sequences = limits.max_sequences, rows = limits.max_rows;
  buffer_.resize(size_t(kHeaderWords + 4 * tokens + 2 * sequences + 1 + sequences * limits.max_blocks_per_sequence + rows +
                        words_of_plain(rows)));
}

// The arrays of a plan whose header is known, where they lie in the buffer.
Plan PlanChannel::view(const Header& header) {
  Plan plan;
  Batch& batch = plan.batch;
  batch.tokens = header.tokens, batch.sequences = header.sequences, batch.rows = header.rows;
  batch.block_table_stride = header.block_table_stride;
  const int32_t* next = buffer_.data() + kHeaderWords;
  auto take = [&](int64_t count) { return std::exchange(next, next + count); };
  batch.token_ids = take(batch.tokens);
  if (header.fed) plan.token_sources = take(batch.tokens);
  batch.positions = take(batch.tokens);
  batch.slots = take(batch.tokens);
  batch.query_starts = take(batch.sequences + 1);
  batch.context_lens = take(batch.sequences);
  batch.block_tables = take(int64_t(batch.sequences) * batch.block_table_stride);
  batch.sample_rows = take(batch.rows);
  batch.plain = reinterpret_cast<const uint8_t*>(take(words_of_plain(batch.rows)));
  batch.all_plain = std::all_of(batch.plain, batch.plain + batch.rows, [](uint8_t plain) { return plain != 0; });
  return plan;
}

Plan PlanChannel::lead(const Plan& plan) {
  const Batch& b = plan.batch;
  const Header header{int32_t(Order::step), b.tokens, b.sequences, b.rows, b.block_table_stride, plan.token_sources != nullptr};
  static_assert(sizeof(header) == kHeaderWords * 4);
  std::memcpy(buffer_.data(), &header, sizeof(header));
  int32_t* next = buffer_.data() + kHeaderWords;
  auto put = [&](const int32_t* values, int64_t count) {
    std::memcpy(next, values, size_t(count) * 4);
    next += count;
  };
  put(b.token_ids, b.tokens);
  if (header.fed) put(plan.token_sources, b.tokens);
  put(b.positions, b.tokens);
  put(b.slots, b.tokens);
  put(b.query_starts, b.sequences + 1);
  put(b.context_lens, b.sequences);
  put(b.block_tables, int64_t(b.sequences) * b.block_table_stride);
  put(b.sample_rows, b.rows);
  auto* plain = reinterpret_cast<uint8_t*>(next);
  for (int row = 0; row < b.rows; ++row) plain[row] = is_plain(plan.sampling, row);
  next += words_of_plain(b.rows);
  comm_->broadcast(buffer_.data(), size_t(next - buffer_.data()) * 4, buffer_.size() * 4);
  Plan led = plan;
  led.batch = view(header).batch;
  return led;
}

void PlanChannel::lead(Order order) {
  const Header header{int32_t(order), 0, 0, 0, 0, 0};
  std::memcpy(buffer_.data(), &header, sizeof(header));
  comm_->broadcast(buffer_.data(), sizeof(header), buffer_.size() * 4);
  comm_->barrier();
}

Order PlanChannel::follow(Plan& plan) {
  comm_->broadcast(buffer_.data(), 0, buffer_.size() * 4);
  Header header;
  std::memcpy(&header, buffer_.data(), sizeof(header));
  auto order = Order(header.order);
  if (order == Order::step) {
    plan = view(header);
  } else {
    comm_->barrier();
  }
  return order;
}

}  // namespace oarlock
