#include "cuda/ranks/ranks.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "cuda/device.h"
#include "cuda/elementwise.h"
#include "cuda/ranks/sums.h"
#include "cuda/stream.h"

namespace oarlock::cuda {
namespace {

constexpr int64_t kAlignment = 256;
// A sum's bytes up to which every rank sends all of it to every other; two ranks can do no better at any size.
constexpr int64_t kWholeBytes = 2 << 20;

// Shares of so many rows travel as they are; of more, in half the room (sums.h).
constexpr int64_t kFewRows = kStreamMaxRows;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

Tensor rows_of(Tensor tensor, int64_t first, int64_t count) {
  tensor.data = tensor.as<uint8_t>() + first * tensor.stride * size_of(tensor.dtype);
  tensor.rows = count;
  return tensor;
}

}  // namespace

// Where things lie in a rank's memory: the same places on all, but only rank 0 has the logits.
struct Ranks::Layout {
  int64_t sum_part, candidate_part, token_part;  // bytes
  int64_t candidates, tokens, flags, logits;     // offsets; sums come first
  int64_t logits_stride;                         // elements
  int64_t bytes;
};

Ranks::Layout Ranks::layout() const {
  const int64_t places = 3 * (comm_->world() - 1),
                whole = std::max(limits_.max_tokens * 2, std::min(limits_.max_tokens, kFewRows) * 4) * limits_.hidden;
  Layout l;
  l.sum_part = aligned(comm_->world() == 2 ? whole : std::min(whole, kWholeBytes));
  l.candidate_part = aligned(limits_.max_rows * 8);
  l.token_part = aligned(limits_.max_rows * 4);
  l.candidates = places * l.sum_part;
  l.tokens = l.candidates + places * l.candidate_part;
  l.flags = l.tokens + places * l.token_part;
  l.logits = l.flags + aligned(comm_->world() * 4);
  l.logits_stride = (limits_.vocab_starts.back() + 63) / 64 * 64;
  l.bytes = l.logits + (comm_->rank() == 0 ? limits_.max_rows * l.logits_stride * 4 : 0);
  return l;
}

Ranks::Ranks(std::shared_ptr<Comm> comm, cudaStream_t stream, const RanksLimits& limits)
    : comm_(std::move(comm)), stream_(stream), limits_(limits) {
  const int world = comm_->world();
  require(int(limits.vocab_starts.size()) == world + 1, "vocab_starts must have ", world + 1, " entries, not ",
          limits.vocab_starts.size());
  auto allocate = [&](int64_t bytes) {
    void* memory = nullptr;
    OARLOCK_CUDA_CHECK(cudaMalloc(&memory, size_t(bytes)));
    OARLOCK_CUDA_CHECK(cudaMemset(memory, 0, size_t(bytes)));
    OARLOCK_CUDA_CHECK(cudaDeviceSynchronize());
    allocations_.push_back(memory);
    return static_cast<uint8_t*>(memory);
  };
  OARLOCK_CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&control_), sizeof(WaitControl), cudaHostAllocMapped));
  *control_ = {};
  contest_.best = reinterpret_cast<uint64_t*>(allocate(limits.max_rows * 8));
  contest_.arrived = reinterpret_cast<uint32_t*>(allocate(limits.max_rows * 4));
  state_ = allocate(4 * kAlignment + 16);
  if (world <= kMostPeers + 1 && limits.transport != Transport::nccl) open_peer_memory();
  if (peers_ == nullptr) {
    if (limits.transport == Transport::peer) throw DeviceError("the GPUs of the ranks can't reach each other's memory");
    nccl_ = make_nccl_comm(*comm_, limits.nccl_library);
    found_ = reinterpret_cast<uint64_t*>(allocate(limits.max_rows * 8 * (world + 1)));
    if (comm_->rank() == 0) {
      const int64_t bytes = limits.max_rows * layout().logits_stride * 4;
      gathered_ = reinterpret_cast<float*>(allocate(bytes));
      whole_ = reinterpret_cast<float*>(allocate(bytes));
    }
  }
  comm_->barrier();  // nobody writes to memory that is not empty yet
}

void Ranks::open_peer_memory() {
  const Layout l = layout();
  auto peers = std::make_unique<PeerMemory>(*comm_, size_t(l.bytes));
  if (!peers->reached()) return;
  peers_ = std::move(peers);
  auto* failed = reinterpret_cast<int*>(state_ + 4 * kAlignment);
  auto* cycles = reinterpret_cast<uint64_t*>(state_ + 4 * kAlignment + 8);
  auto open = [&](int index, int64_t offset, int64_t part_bytes) {
    Channel channel;
    channel.rank = comm_->rank();
    channel.world = comm_->world();
    channel.part_bytes = part_bytes;
    for (int r = 0; r < channel.world; ++r) channel.theirs[r] = peers_->of(r) + offset;
    channel.own = channel.theirs[channel.rank];
    channel.rounds = reinterpret_cast<Rounds*>(state_ + index * kAlignment);
    channel.failed = failed;
    channel.cycles = cycles;
    channel.control = control_;
    make_empty(stream_, channel.own, channel.bytes());
    return channel;
  };
  sums_ = open(0, 0, l.sum_part);
  candidates_ = open(1, l.candidates, l.candidate_part);
  tokens_ = open(2, l.tokens, l.token_part);
  gathering_.channel = open(3, 0, 0);
  gathering_.whole = reinterpret_cast<float*>(peers_->of(0) + l.logits);
  gathering_.stride = l.logits_stride;
  gathering_.flags = reinterpret_cast<uint32_t*>(peers_->of(0) + l.flags);
  OARLOCK_CUDA_CHECK(cudaStreamSynchronize(stream_));
}

Ranks::~Ranks() {
  for (void* memory : allocations_) cudaFree(memory);
  cudaFreeHost(control_);
}

void Ranks::begin_step() { reinterpret_cast<volatile uint64_t&>(control_->limit) = uint64_t(comm_->time_limit() * 1e9); }

void Ranks::check() const {
  const int late = reinterpret_cast<const volatile int32_t&>(control_->late);
  if (late == 0) return;
  throw CommError(concat("rank ", late - 1, " has been silent for ", comm_->time_limit(), " s, as rank ", comm_->rank(),
                         "'s device sees it"));
}

void Ranks::abort() {
  reinterpret_cast<volatile int32_t&>(control_->aborted) = 1;
  if (nccl_) nccl_->abort();
}

double Ranks::seconds() const {
  int device = 0, kilohertz = 0;
  uint64_t cycles = 0;
  OARLOCK_CUDA_CHECK(cudaGetDevice(&device));
  OARLOCK_CUDA_CHECK(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, device));
  OARLOCK_CUDA_CHECK(cudaMemcpyAsync(&cycles, state_ + 4 * kAlignment + 8, 8, cudaMemcpyDeviceToHost, stream_));
  OARLOCK_CUDA_CHECK(cudaStreamSynchronize(stream_));
  return double(cycles) / (double(kilohertz) * 1e3);
}

void Ranks::all_reduce(Tensor x) {
  if (!peers_) return nccl_->all_reduce(stream_, x.data, x.rows * x.cols, x.dtype);
  const int64_t most = sums_.part_bytes / (x.cols * size_of(x.dtype));
  for (int64_t first = 0; first < x.rows; first += most) {
    sum(stream_, sums_, rows_of(x, first, std::min(most, x.rows - first)));
  }
}

bool Ranks::share(Tensor delta, const std::function<bool(const Channel&)>& send) {
  const bool sent = peers_ && delta.rows * delta.cols * 4 <= sums_.part_bytes && send(sums_);
  shared_ = sent ? delta.data : nullptr;
  return sent;
}

void Ranks::sum_add_norm(Tensor out, Tensor residual, Tensor delta, const float* weight, float epsilon) {
  if (!peers_) {
    nccl_->all_reduce(stream_, delta.data, delta.rows * delta.cols, delta.dtype);
    return add_norm(stream_, out, residual, &delta, weight, epsilon);
  }
  const bool sent = std::exchange(shared_, nullptr) == delta.data;
  const Travel travel = sent ? Travel::sent : limits_.exact || delta.rows <= kFewRows ? Travel::whole : Travel::packed;
  const int64_t most = sums_.part_bytes / (delta.cols * (travel == Travel::packed ? 2 : 4));
  for (int64_t first = 0; first < delta.rows; first += most) {
    const int64_t count = std::min(most, delta.rows - first);
    cuda::sum_add_norm(stream_, sums_, travel, rows_of(out, first, count), rows_of(residual, first, count),
                       rows_of(delta, first, count), weight, epsilon);
  }
}

void Ranks::sample(Tensor part, bool plain, const Sampled& sampled, const std::function<void(Tensor)>& draw) {
  require(part.rows <= limits_.max_rows, "ranks draw up to ", limits_.max_rows, " rows at once, not ", part.rows);
  const int first = int(limits_.vocab_starts[size_t(comm_->rank())]), rows = int(part.rows);
  if (!plain) {
    const Tensor whole = gather(part);
    if (comm_->rank() == 0) draw(whole);
    if (peers_) return share_tokens(stream_, tokens_, sampled.token, rows);
    return nccl_->broadcast(stream_, sampled.token, size_t(rows) * 4);
  }
  if (peers_) return choose_likeliest(stream_, candidates_, contest_, part, first, sampled);
  find_candidates(stream_, contest_, part, first, found_);
  nccl_->all_gather(stream_, found_, found_ + rows, size_t(rows) * 8);
  choose_candidates(stream_, found_ + rows, comm_->world(), rows, sampled);
}

Tensor Ranks::gather(Tensor part) {
  const std::vector<int64_t>& starts = limits_.vocab_starts;
  const int rank = comm_->rank(), rows = int(part.rows);
  float* to = peers_ ? gathering_.whole : whole_;
  const Tensor whole{to, DType::f32, rows, starts.back(), layout().logits_stride};
  if (peers_ && rank != 0) put_logits(stream_, gathering_, part, int(starts[size_t(rank)]));
  if (peers_ && rank == 0) {
    place_logits(stream_, to, whole.stride, part, 0);
    await_logits(stream_, gathering_);
  }
  if (peers_) return whole;
  std::vector<size_t> bytes;
  for (size_t r = 0; r + 1 < starts.size(); ++r) bytes.push_back(size_t(rows * (starts[r + 1] - starts[r])) * 4);
  nccl_->gather(stream_, part.data, gathered_, bytes);
  for (size_t r = 0; r + 1 < starts.size() && rank == 0; ++r) {
    const int64_t width = starts[r + 1] - starts[r];
    place_logits(stream_, to, whole.stride, {gathered_ + rows * starts[r], DType::f32, rows, width, width}, int(starts[r]));
  }
  return whole;
}

}  // namespace oarlock::cuda
