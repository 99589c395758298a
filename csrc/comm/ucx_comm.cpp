#include "comm/ucx_comm.h"

#include <poll.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "comm/ucx_library.h"

namespace oarlock {
namespace {

using Clock = std::chrono::steady_clock;

// Up to here a sum is one exchange of everything; beyond it, for more than two ranks, each sums a part for all.
constexpr int64_t kWholeBytes = 32 << 10;
constexpr int kSpins = 32;                                    // polls between two looks at the clock
constexpr auto kSpinTime = std::chrono::microseconds(100);    // then the core is offered to others
constexpr auto kYieldTime = std::chrono::microseconds(1000);  // then this thread sleeps until something comes
constexpr int kSleepMilliseconds = 50;

struct Slice {
  int64_t begin, count;
};

// Rank r's part of count elements, in whole cache lines.
Slice slice_of(int64_t count, int world, int r) {
  int64_t lines = (count + 15) / 16, begin = lines * r / world * 16, end = lines * (r + 1) / world * 16;
  return {std::min(begin, count), std::min(end, count) - std::min(begin, count)};
}

class UcxComm final : public MemberComm {
 public:
  UcxComm(int rank, int world, double time_limit, const std::string& library);
  ~UcxComm() override;
  UcxComm(const UcxComm&) = delete;
  UcxComm& operator=(const UcxComm&) = delete;

  const std::string& address() const override { return address_; }
  void connect(const std::vector<std::string>& addresses, const std::vector<std::string>& names) override;
  void set_time_limit(double seconds) override { time_limit_ = seconds; }
  double seconds() const override { return std::chrono::duration<double>(spent_).count(); }

  int rank() const override { return rank_; }
  int world() const override { return world_; }
  void all_reduce(float* values, int64_t count) override;
  void all_gather(const void* mine, void* all, const std::vector<size_t>& bytes) override;
  void gather(const void* mine, void* all, const std::vector<size_t>& bytes) override;
  size_t broadcast(void* data, size_t bytes, size_t capacity) override;
  void barrier() override;
  void check() override;
  double time_limit() const override { return time_limit_; }
  void set_patience(double seconds) override { patience_ = as_duration(seconds); }
  void abort(const std::string& reason) override;

 private:
  struct Pending {
    void* request = nullptr;
    int peer = 0;
  };
  // What the error handler of an endpoint is given.
  struct Peer {
    ucp_ep_h endpoint = nullptr;
    ucs_status_t fault = UCS_OK;
    std::string name;
  };
  // Adds to the time that collectives have taken, until it goes out of scope.
  class Timed {
   public:
    explicit Timed(Clock::duration& spent) : spent_(spent) {}
    ~Timed() { spent_ += Clock::now() - start_; }
    Timed(const Timed&) = delete;
    Timed& operator=(const Timed&) = delete;

   private:
    Clock::duration& spent_;
    const Clock::time_point start_ = Clock::now();
  };

  static void on_error(void* peer, ucp_ep_h endpoint, ucs_status_t status);
  void send(int peer, const void* data, size_t bytes);
  void receive(int peer, void* data, size_t bytes);
  void begin(const char* call);
  void finish(bool patient = false);
  void look();
  static Clock::duration as_duration(double seconds) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  bool progress_pending();
  void sleep(int milliseconds);
  [[noreturn]] void fail(const std::string& reason);
  void add(ucs_status_ptr_t request, int peer);
  void sum_in_order(float* own, const float* parts, int64_t count) const;
  void reduce_whole(float* values, int64_t count);
  void reduce_scattered(float* values, int64_t count);

  const UcxLibrary& ucx_;
  const int rank_, world_;
  double time_limit_;
  Clock::duration patience_ = kSpinTime;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_ = -1;
  std::string address_;
  std::vector<Peer> peers_;
  std::vector<Pending> pending_;
  std::vector<float> scratch_;
  const char* call_ = "";
  uint64_t sequence_ = 0;  // of calls, the same on every rank: a message's tag
  Clock::duration spent_{};
  std::mutex abort_mutex_;
  std::string abort_reason_;
  std::atomic<bool> aborted_{false};
  bool failed_ = false;
};

UcxComm::UcxComm(int rank, int world, double time_limit, const std::string& library)
    : ucx_(ucx_library(library)), rank_(rank), world_(world), time_limit_(time_limit), peers_(size_t(world)) {
  require(world >= 1 && rank >= 0 && rank < world, "rank ", rank, " is outside 0 to ", world - 1);
  require(time_limit > 0, "the time limit must be more than 0 s, not ", time_limit);
  auto need = [&](ucs_status_t status, const char* what) {
    if (status != UCS_OK) throw DeviceError(concat("UCX: ", what, ": ", ucx_.status_string(status)));
  };
  ucp_config_t* config = nullptr;
  need(ucx_.config_read(nullptr, nullptr, &config), "its configuration");
  // Shared memory reports no dead peer, and between few cores it is no faster than loopback (docs/performance.md).
  if (std::getenv("UCX_TLS") == nullptr) ucx_.config_modify(config, "TLS", "tcp,ib");
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  params.features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 0;
  ucs_status_t status = ucx_.init_version(UCP_API_MAJOR, 13, &params, config, &context_);
  ucx_.config_release(config);
  need(status, "no transport could be set up");
  ucp_worker_params_t worker{};
  worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  need(ucx_.worker_create(context_, &worker, &worker_), "worker");
  need(ucx_.worker_get_efd(worker_, &event_), "event descriptor");
  ucp_address_t* address = nullptr;
  size_t bytes = 0;
  need(ucx_.worker_get_address(worker_, &address, &bytes), "address");
  address_.assign(reinterpret_cast<const char*>(address), bytes);
  ucx_.worker_release_address(worker_, address);
}

UcxComm::~UcxComm() {
  for (Pending& pending : pending_) {
    ucx_.request_cancel(worker_, pending.request);
    ucx_.request_free(pending.request);
  }
  ucp_request_param_t close{};
  close.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  close.flags = UCP_EP_CLOSE_FLAG_FORCE;
  for (Peer& peer : peers_) {
    if (peer.endpoint == nullptr) continue;
    void* request = ucx_.ep_close_nbx(peer.endpoint, &close);
    if (!UCS_PTR_IS_PTR(request)) continue;
    for (int i = 0; i < 1000 && ucx_.request_check_status(request) == UCS_INPROGRESS; ++i) ucx_.worker_progress(worker_);
    ucx_.request_free(request);
  }
  if (worker_ != nullptr) ucx_.worker_destroy(worker_);
  if (context_ != nullptr) ucx_.cleanup(context_);
}

void UcxComm::on_error(void* peer, ucp_ep_h, ucs_status_t status) { static_cast<Peer*>(peer)->fault = status; }

void UcxComm::connect(const std::vector<std::string>& addresses, const std::vector<std::string>& names) {
  require(int(addresses.size()) == world_ && int(names.size()) == world_, "connect wants ", world_,
          " addresses and names, not ", addresses.size(), " and ", names.size());
  for (int r = 0; r < world_; ++r) {
    Peer& peer = peers_[size_t(r)];
    require(peer.endpoint == nullptr, "the communicator is connected already");
    peer.name = names[size_t(r)];
    if (r == rank_) continue;
    ucp_ep_params_t params{};
    params.field_mask =
        UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.address = reinterpret_cast<const ucp_address_t*>(addresses[size_t(r)].data());
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler = {on_error, &peer};
    ucs_status_t status = ucx_.ep_create(worker_, &params, &peer.endpoint);
    if (status != UCS_OK) fail(concat("rank ", r, " (", peer.name, ") can't be reached: ", ucx_.status_string(status)));
  }
  barrier();
}

void UcxComm::abort(const std::string& reason) {
  {
    std::lock_guard<std::mutex> lock(abort_mutex_);
    if (abort_reason_.empty()) abort_reason_ = reason;
  }
  aborted_.store(true, std::memory_order_release);
}

void UcxComm::fail(const std::string& reason) {
  failed_ = true;
  throw CommError(reason);
}

void UcxComm::begin(const char* call) {
  if (failed_) throw CommError(concat(call, ": the communicator has failed before"));
  if (aborted_.load(std::memory_order_acquire)) {  // a call that need not wait would not see it
    std::lock_guard<std::mutex> lock(abort_mutex_);
    fail(concat(call, ": ", abort_reason_));
  }
  call_ = call;
  ++sequence_;
}

void UcxComm::add(ucs_status_ptr_t request, int peer) {
  if (request == nullptr) return;
  if (UCS_PTR_IS_ERR(request)) {
    fail(concat(call_, ": rank ", peer, " (", peers_[size_t(peer)].name,
                ") is lost: ", ucx_.status_string(UCS_PTR_STATUS(request))));
  }
  pending_.push_back({request, peer});
}

void UcxComm::send(int peer, const void* data, size_t bytes) {
  ucp_request_param_t param{};
  add(ucx_.tag_send_nbx(peers_[size_t(peer)].endpoint, data, bytes, sequence_ << 16 | uint64_t(rank_), &param), peer);
}

void UcxComm::receive(int peer, void* data, size_t bytes) {
  ucp_request_param_t param{};
  add(ucx_.tag_recv_nbx(worker_, data, bytes, sequence_ << 16 | uint64_t(peer), ~uint64_t(0), &param), peer);
}

// Takes the requests that are done off the list; false while some are left.
bool UcxComm::progress_pending() {
  ucx_.worker_progress(worker_);
  for (size_t i = 0; i < pending_.size();) {
    ucs_status_t status = ucx_.request_check_status(pending_[i].request);
    if (status == UCS_INPROGRESS) {
      ++i;
      continue;
    }
    int peer = pending_[i].peer;
    ucx_.request_free(pending_[i].request);
    pending_[i] = pending_.back();
    pending_.pop_back();
    if (status != UCS_OK) {
      fail(concat(call_, ": rank ", peer, " (", peers_[size_t(peer)].name, ") is lost: ", ucx_.status_string(status)));
    }
  }
  return pending_.empty();
}

void UcxComm::sleep(int milliseconds) {
  if (ucx_.worker_arm(worker_) != UCS_OK) return;  // something has come meanwhile
  pollfd event{event_, POLLIN, 0};
  poll(&event, 1, milliseconds);
}

// Fails when the call has been aborted or a peer is known to be lost.
void UcxComm::look() {
  if (aborted_.load(std::memory_order_acquire)) {
    std::lock_guard<std::mutex> lock(abort_mutex_);
    fail(concat(call_, ": ", abort_reason_));
  }
  for (size_t r = 0; r < peers_.size(); ++r) {
    if (peers_[r].fault != UCS_OK)
      fail(concat(call_, ": rank ", r, " (", peers_[r].name, ") is lost: ", ucx_.status_string(peers_[r].fault)));
  }
}

void UcxComm::check() {
  if (failed_) throw CommError("the communicator has failed before");
  call_ = "at work";
  ucx_.worker_progress(worker_);
  look();
}

// Waits for every message of the call; patient: most of the time nothing comes soon, so that sleeping is right.
void UcxComm::finish(bool patient) {
  const auto limit = as_duration(time_limit_);
  Clock::time_point start{};
  for (int64_t turn = 0; !progress_pending(); ++turn) {
    if (turn % kSpins != kSpins - 1 && start == Clock::time_point{}) continue;
    look();
    const auto now = Clock::now();
    if (start == Clock::time_point{}) start = now;
    const auto waited = now - start;
    if (waited > limit) {
      int peer = pending_.front().peer;
      fail(concat(call_, ": rank ", peer, " (", peers_[size_t(peer)].name, ") has been silent for ", time_limit_, " s"));
    }
    if (waited > (patient ? patience_ : kYieldTime)) {
      sleep(kSleepMilliseconds);
    } else if (waited > kSpinTime) {
      sched_yield();
    }
  }
}

void UcxComm::sum_in_order(float* own, const float* parts, int64_t count) const {
  constexpr int64_t kChunk = 1024;
  float sum[kChunk];
  for (int64_t first = 0; first < count; first += kChunk) {
    const int64_t n = std::min(kChunk, count - first);
    auto part = [&](int r) { return (r == rank_ ? own : parts + r * count) + first; };
    std::memcpy(sum, part(0), size_t(n) * 4);
    for (int r = 1; r < world_; ++r) {
      const float* values = part(r);
      for (int64_t i = 0; i < n; ++i) sum[i] += values[i];
    }
    std::memcpy(own + first, sum, size_t(n) * 4);
  }
}

void UcxComm::reduce_whole(float* values, int64_t count) {
  for (int r = 0; r < world_; ++r)
    if (r != rank_) receive(r, scratch_.data() + r * count, size_t(count) * 4);
  for (int r = 0; r < world_; ++r)
    if (r != rank_) send(r, values, size_t(count) * 4);
  finish();
  sum_in_order(values, scratch_.data(), count);
}

void UcxComm::reduce_scattered(float* values, int64_t count) {
  const Slice mine = slice_of(count, world_, rank_);
  for (int r = 0; r < world_; ++r)
    if (r != rank_) receive(r, scratch_.data() + r * mine.count, size_t(mine.count) * 4);
  for (int r = 0; r < world_; ++r) {
    Slice theirs = slice_of(count, world_, r);
    if (r != rank_) send(r, values + theirs.begin, size_t(theirs.count) * 4);
  }
  finish();
  float* own = values + mine.begin;
  sum_in_order(own, scratch_.data(), mine.count);
  ++sequence_;
  for (int r = 0; r < world_; ++r) {
    Slice theirs = slice_of(count, world_, r);
    if (r != rank_) receive(r, values + theirs.begin, size_t(theirs.count) * 4);
  }
  for (int r = 0; r < world_; ++r)
    if (r != rank_) send(r, own, size_t(mine.count) * 4);
  finish();
}

void UcxComm::all_reduce(float* values, int64_t count) {
  begin("all_reduce");
  Timed timed(spent_);
  if (world_ == 1 || count == 0) return;
  if (scratch_.size() < size_t(world_ * count)) scratch_.resize(size_t(world_ * count));
  if (world_ == 2 || count * 4 <= kWholeBytes) return reduce_whole(values, count);
  reduce_scattered(values, count);
}

void UcxComm::all_gather(const void* mine, void* all, const std::vector<size_t>& bytes) {
  begin("all_gather");
  Timed timed(spent_);
  require(int(bytes.size()) == world_, "all_gather wants ", world_, " sizes, not ", bytes.size());
  char* into = static_cast<char*>(all);
  for (int r = 0; r < world_; into += bytes[size_t(r++)]) {
    if (r == rank_) std::memmove(into, mine, bytes[size_t(r)]);
    if (r != rank_) receive(r, into, bytes[size_t(r)]);
  }
  for (int r = 0; r < world_; ++r)
    if (r != rank_) send(r, mine, bytes[size_t(rank_)]);
  finish();
}

void UcxComm::gather(const void* mine, void* all, const std::vector<size_t>& bytes) {
  begin("gather");
  Timed timed(spent_);
  require(int(bytes.size()) == world_, "gather wants ", world_, " sizes, not ", bytes.size());
  if (rank_ == 0) {
    std::memmove(all, mine, bytes[0]);
    char* into = static_cast<char*>(all) + bytes[0];
    for (int r = 1; r < world_; into += bytes[size_t(r++)]) receive(r, into, bytes[size_t(r)]);
  } else {
    send(0, mine, bytes[size_t(rank_)]);
  }
  finish();
}

size_t UcxComm::broadcast(void* data, size_t bytes, size_t capacity) {
  begin("broadcast");
  // The length travels in front, so that one message does; the buffer has room for it.
  if (rank_ == 0) require(bytes <= capacity, "a broadcast of ", bytes, " bytes; ", capacity, " fit");
  if (scratch_.size() * 4 < capacity + 8) scratch_.resize((capacity + 8 + 3) / 4);
  char* buffer = reinterpret_cast<char*>(scratch_.data());
  uint64_t length = bytes;
  if (rank_ == 0) {
    Timed timed(spent_);
    std::memcpy(buffer, &length, 8);
    std::memcpy(buffer + 8, data, bytes);
    for (int r = 1; r < world_; ++r) send(r, buffer, bytes + 8);
    finish();
    return bytes;
  }
  receive(0, buffer, capacity + 8);
  finish(true);
  std::memcpy(&length, buffer, 8);
  if (length > capacity) fail(concat("broadcast: rank 0 announces ", length, " bytes; ", capacity, " fit"));
  std::memcpy(data, buffer + 8, size_t(length));
  return size_t(length);
}

void UcxComm::barrier() {
  begin("barrier");
  Timed timed(spent_);
  char mine = 0;
  std::vector<char> theirs(size_t(world_), 0);
  for (int r = 0; r < world_; ++r)
    if (r != rank_) receive(r, &theirs[size_t(r)], 1);
  for (int r = 0; r < world_; ++r)
    if (r != rank_) send(r, &mine, 1);
  finish();
}

}  // namespace

std::shared_ptr<MemberComm> make_ucx_comm(int rank, int world, double time_limit, const std::string& library) {
  return std::make_shared<UcxComm>(rank, world, time_limit, library);
}

}  // namespace oarlock
