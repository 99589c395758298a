// Ranks as processes of this machine, a GPU each (or shared, where there are too few): sums and tokens by peer memory and by
// NCCL against what they must be, and a rank that never comes. `cuda_ranks_check bench` prints what an exchange costs.
//   cuda_ranks_check [check|quick|bench|all] [ranks] [peer|nccl|both]
// quick is the short form for compute-sanitizer.
#include "cuda/check.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "cuda/elementwise.h"
#include "cuda/kernels.h"
#include "cuda/ranks/ranks.h"
#include "cuda/weights.h"

namespace oarlock::cuda::check {
namespace {

constexpr int kMostRanks = 8;
constexpr size_t kBoardBytes = 1 << 16;
using Clock = std::chrono::steady_clock;

// Memory that the forked processes share, and a communicator over it.
struct Board {
  std::atomic<int> arrived{0}, turn{0};
  uint8_t words[kMostRanks][kBoardBytes];
};

class BoardComm final : public Comm {
 public:
  BoardComm(Board& board, int rank, int world) : board_(board), rank_(rank), world_(world) {}
  double limit = 30;

  int rank() const override { return rank_; }
  int world() const override { return world_; }
  void all_reduce(float* values, int64_t count) override {
    std::vector<float> all(size_t(count * world_));
    all_gather(values, all.data(), std::vector<size_t>(size_t(world_), size_t(count) * 4));
    for (int64_t i = 0; i < count; ++i) {
      values[i] = all[size_t(i)];
      for (int r = 1; r < world_; ++r) values[i] += all[size_t(r * count + i)];
    }
  }
  void all_gather(const void* mine, void* all, const std::vector<size_t>& bytes) override {
    require(bytes[size_t(rank_)] <= kBoardBytes, "the board is too small");
    std::memcpy(board_.words[rank_], mine, bytes[size_t(rank_)]);
    barrier();
    auto* to = static_cast<uint8_t*>(all);
    for (int r = 0; r < world_; to += bytes[size_t(r++)]) std::memcpy(to, board_.words[r], bytes[size_t(r)]);
    barrier();
  }
  void gather(const void* mine, void* all, const std::vector<size_t>& bytes) override { all_gather(mine, all, bytes); }
  size_t broadcast(void* data, size_t bytes, size_t capacity) override {
    if (rank_ == 0) std::memcpy(board_.words[0], &bytes, 8), std::memcpy(board_.words[0] + 8, data, bytes);
    barrier();
    std::memcpy(&bytes, board_.words[0], 8);
    std::memcpy(data, board_.words[0] + 8, std::min(bytes, capacity));
    barrier();
    return bytes;
  }
  void barrier() override {
    const int turn = board_.turn.load();
    const auto begin = Clock::now();
    if (++board_.arrived == world_) {
      board_.arrived = 0;
      ++board_.turn;
      return;
    }
    while (board_.turn.load() == turn) {
      if (Clock::now() - begin > std::chrono::seconds(60)) throw CommError("a process of this check has ended");
      std::this_thread::yield();
    }
  }
  void check() override {}
  double time_limit() const override { return limit; }
  void set_patience(double) override {}
  void abort(const std::string&) override {}

 private:
  Board& board_;
  const int rank_, world_;
};

// One rank's process.
struct Process {
  std::shared_ptr<BoardComm> comm;
  Transport transport;
  cudaStream_t stream = nullptr;
  RanksLimits limits;
  std::unique_ptr<Ranks> ranks;
  Report report;
  Device device;

  int rank() const { return comm->rank(); }
  int world() const { return comm->world(); }

  void open(int64_t tokens, int64_t rows, int64_t hidden, int64_t vocab) {
    limits.max_tokens = tokens;
    limits.max_rows = rows;
    limits.hidden = hidden;
    limits.transport = transport;
    limits.vocab_starts.clear();
    for (int r = 0; r < world(); ++r) limits.vocab_starts.push_back(vocab * r / world() / 64 * 64);
    limits.vocab_starts.push_back(vocab);
    if (const char* library = std::getenv("OARLOCK_NCCL_LIBRARY")) limits.nccl_library = library;
    ranks = std::make_unique<Ranks>(comm, stream, limits);
    ranks->begin_step();
  }
  void finish() {
    OARLOCK_CUDA_CHECK(cudaStreamSynchronize(stream));
    ranks->check();
  }
  // Whether every rank has the same bits.
  bool alike(const Tensor& t) {
    std::vector<uint32_t> bits(size_t(t.rows * t.stride * size_of(t.dtype) / 4));
    OARLOCK_CUDA_CHECK(cudaMemcpy(bits.data(), t.data, bits.size() * 4, cudaMemcpyDeviceToHost));
    uint64_t sum = 1469598103934665603ull;
    for (uint32_t word : bits) sum = (sum ^ word) * 1099511628211ull;
    std::vector<uint64_t> all(static_cast<size_t>(world()));
    comm->all_gather(&sum, all.data(), std::vector<size_t>(all.size(), 8));
    return std::count(all.begin(), all.end(), sum) == world();
  }
};

// Everybody draws the same numbers, so each knows the others' shares.
void check_sums(Process& p) {
  const int64_t most = 600;
  for (int hidden : {64, 576, 4096, 8192}) {
    if (p.report.quick && hidden > 576) continue;
    p.limits.exact = hidden == 576;
    p.open(most, 8, hidden, 256);
    for (int round = 0; round < (hidden > 4096 ? 4 : p.report.quick ? 6 : 24); ++round) {
      const int rows = round % 4 == 3 ? integer(1, int(most)) : integer(1, 40);
      const DType type = round % 2 ? DType::bf16 : DType::f16;
      const size_t count = size_t(rows) * size_t(hidden);
      std::vector<std::vector<float>> shares;
      for (int r = 0; r < p.world(); ++r) {
        shares.push_back(normals(count, 1));
        for (size_t i = 0; i < count; i += 7) shares.back()[i] = -0.f;  // which must not be taken for what has not come
      }
      std::vector<float> before = normals(count, 2), weight = normals(size_t(hidden), 1);
      Tensor residual = tensor(before, DType::f32, rows, hidden), out = poisoned(type, rows, hidden);
      Tensor delta = tensor(shares[size_t(p.rank())], DType::f32, rows, hidden);
      Tensor plain = tensor(shares[size_t(p.rank())], DType::f32, rows, hidden);
      p.ranks->all_reduce(plain);
      p.ranks->sum_add_norm(out, residual, delta, to_device(weight), 1e-5f);
      p.finish();
      std::vector<double> sum(count), want(count), want_sum(count);
      for (size_t i = 0; i < count; ++i) {
        for (const auto& share : shares) want_sum[i] += share[i];
        sum[i] = before[i] + want_sum[i];
      }
      for (int r = 0; r < rows; ++r) {
        double squares = 0;
        for (int c = 0; c < hidden; ++c)
          squares += sum[size_t(r) * size_t(hidden) + size_t(c)] * sum[size_t(r) * size_t(hidden) + size_t(c)];
        for (int c = 0; c < hidden; ++c) {
          const size_t i = size_t(r) * size_t(hidden) + size_t(c);
          want[i] = sum[i] / std::sqrt(squares / hidden + 1e-5) * weight[size_t(c)];
        }
      }
      const std::string what = std::to_string(rows) + " rows of " + std::to_string(hidden);
      const bool packed = p.transport == Transport::peer && !p.limits.exact && rows > 32;
      p.report.close(to_host(plain), want_sum, 1e-6, "sum of " + what);
      p.report.close(to_host(residual), sum, packed ? 1e-4 : 1e-6, "residual of " + what);
      p.report.close(to_host(out), want, tolerance(type), "norm of " + what);
      p.report.expect(p.alike(residual) && p.alike(out) && p.alike(plain), "ranks differ: " + what);
    }
    p.ranks.reset();
  }
}

// Shares that the product sends as it writes them, in a graph too.
void check_sent(Process& p) {
  p.limits.exact = false;
  for (int hidden : {576, 1536, 4096}) {
    p.open(40, 8, hidden, 256);
    for (int rows : {1, 7, 16, 32, 40}) {
      if (p.report.quick && (hidden != 1536 || rows > 16)) continue;
      const int k = 64 * integer(4, 5);
      const size_t count = size_t(rows) * size_t(hidden);
      std::vector<std::vector<float>> shares;
      Tensor x;
      StreamWeight weight{nullptr, DType::bf16, hidden, k};
      for (int r = 0; r < p.world(); ++r) {
        std::vector<float> rows_of_x(size_t(rows * k)), rows_of_w(size_t(hidden * k));
        for (float& v : rows_of_x) v = float(integer(-3, 3));
        for (float& v : rows_of_w) v = float(integer(-3, 3)) / 8;
        std::vector<float> share(count);
        for (int i = 0; i < rows; ++i) {
          for (int c = 0; c < hidden; ++c) {
            float sum = 0;
            for (int j = 0; j < k; ++j) sum += rows_of_x[size_t(i * k + j)] * rows_of_w[size_t(c * k + j)];
            share[size_t(i) * size_t(hidden) + size_t(c)] = sum;
          }
        }
        shares.push_back(share);
        if (r != p.rank()) continue;
        x = tensor(rows_of_x, DType::bf16, rows, k);
        weight.data = tensor(rows_of_w, DType::bf16, hidden, k).data;
      }
      std::vector<float> before = normals(count, 2), scale(size_t(hidden), 1);
      Tensor residual = tensor(before, DType::f32, rows, hidden), out = poisoned(DType::bf16, rows, hidden);
      Tensor delta = poisoned(DType::f32, rows, hidden);
      const float* device_scale = to_device(scale);
      bool sent = false;
      auto call = [&] {
        sent = p.ranks->share(delta, [&](const Channel& channel) {
          return p.device.kernels->share(p.stream, p.device, weight, delta, x, channel);
        });
        if (sent) p.ranks->sum_add_norm(out, residual, delta, device_scale, 1e-5f);
      };
      call();
      p.finish();
      const std::string what = std::to_string(rows) + " rows of " + std::to_string(hidden) + " sent by a product";
      p.report.expect(sent == (rows <= 32) || p.device.kernels->name != std::string("hopper"), what + ": whether they are");
      if (!sent) continue;
      const Graph graph(p.stream, [&] {
        for (int i = 0; i < 3; ++i) call();
      });
      for (int i = 0; i < 20; ++i) graph.launch(p.stream);
      p.finish();
      std::vector<double> sum(before.begin(), before.end());
      for (size_t i = 0; i < count; ++i)
        for (const auto& share : shares) sum[i] += 61 * double(share[i]);
      p.report.close(to_host(residual), sum, 1e-6, what);
      p.report.expect(p.alike(residual) && p.alike(out), "ranks differ: " + what);
    }
    p.ranks.reset();
  }
}

void check_tokens(Process& p) {
  const int vocab = 5000, most = 40;
  p.open(8, most, 64, vocab);
  const int64_t begin = p.limits.vocab_starts[size_t(p.rank())], end = p.limits.vocab_starts[size_t(p.rank()) + 1];
  std::vector<int32_t> nothing(most, -7);
  int32_t *token = to_device(nothing), *status = to_device(nothing);
  float* logprob = reinterpret_cast<float*>(to_device(nothing));
  const Sampled sampled{token, logprob, nullptr, nullptr, status};
  for (int round = 0; round < (p.report.quick ? 4 : 40); ++round) {
    const int rows = integer(1, most);
    std::vector<float> whole = normals(size_t(rows) * vocab, 3), part;
    for (float& x : whole) x = std::round(x * 8) / 8;  // so that there are ties
    for (int row = 0; row < rows; ++row) {
      const int kind = integer(0, 9);
      float* logits = whole.data() + size_t(row) * vocab;
      if (kind == 0) logits[integer(0, vocab - 1)] = NAN;
      if (kind == 1) logits[integer(0, vocab - 1)] = INFINITY;
      if (kind == 2) std::fill_n(logits, vocab, -INFINITY);
      part.insert(part.end(), logits + begin, logits + end);
    }
    Tensor mine = tensor(part, DType::f32, rows, end - begin);
    p.ranks->sample(mine, true, sampled, nullptr);
    p.finish();
    std::vector<int32_t> tokens(static_cast<size_t>(rows)), states(tokens.size()), want(tokens.size()),
        want_states(tokens.size());
    auto fetch = [&] {
      OARLOCK_CUDA_CHECK(cudaMemcpy(tokens.data(), token, tokens.size() * 4, cudaMemcpyDeviceToHost));
      OARLOCK_CUDA_CHECK(cudaMemcpy(states.data(), status, tokens.size() * 4, cudaMemcpyDeviceToHost));
    };
    fetch();
    for (int row = 0; row < rows; ++row) {
      const float* logits = whole.data() + size_t(row) * vocab;
      bool bad = false;
      for (int id = 0; id < vocab; ++id) bad |= !(logits[id] < INFINITY);
      const int64_t best = std::max_element(logits, logits + vocab) - logits;
      bad |= !(logits[best] > -INFINITY);
      want[size_t(row)] = bad ? 0 : int32_t(best);
      want_states[size_t(row)] = bad;
    }
    p.report.expect(tokens == want && states == want_states, "likeliest tokens of " + std::to_string(rows) + " rows");
    // The other way: rank 0 sees all logits, and everybody learns what it draws.
    std::vector<int32_t> drawn;
    for (int row = 0; row < rows; ++row) drawn.push_back(integer(0, vocab - 1));
    std::vector<float> seen;
    p.ranks->sample(mine, false, sampled, [&](Tensor all) {
      OARLOCK_CUDA_CHECK(cudaMemcpyAsync(token, drawn.data(), drawn.size() * 4, cudaMemcpyHostToDevice, p.stream));
      OARLOCK_CUDA_CHECK(cudaStreamSynchronize(p.stream));
      seen = to_host(all);
    });
    p.finish();
    fetch();
    p.report.expect(tokens == drawn, "shared tokens of " + std::to_string(rows) + " rows");
    if (p.rank() != 0) continue;
    p.report.expect(seen.size() == whole.size() && std::memcmp(seen.data(), whole.data(), whole.size() * 4) == 0,
                    "gathered logits of " + std::to_string(rows) + " rows");
  }
  p.ranks.reset();
}

// Rounds are counted on the device: the same graph, many times, with other sizes between.
void check_graphs(Process& p) {
  const int hidden = 1024, most = 64;
  p.open(most, 8, hidden, 256);
  for (int round = 0; round < (p.report.quick ? 2 : 6); ++round) {
    const int rows = integer(1, most), calls = integer(1, 7);
    const size_t count = size_t(rows) * hidden;
    std::vector<float> weight(hidden, 1);
    Tensor residual = tensor(std::vector<float>(count), DType::f32, rows, hidden), out = poisoned(DType::bf16, rows, hidden);
    Tensor share = tensor(std::vector<float>(count, float(p.rank() + 1)), DType::f32, rows, hidden);
    Tensor delta = poisoned(DType::f32, rows, hidden);
    const float* scale = to_device(weight);
    auto run = [&] {
      for (int i = 0; i < calls; ++i) {
        OARLOCK_CUDA_CHECK(cudaMemcpyAsync(delta.data, share.data, count * 4, cudaMemcpyDeviceToDevice, p.stream));
        p.ranks->sum_add_norm(out, residual, delta, scale, 1e-5f);
      }
    };
    run();
    p.finish();
    const Graph graph(p.stream, run);
    for (int i = 0; i < 50; ++i) graph.launch(p.stream);
    p.finish();
    const float want = float(51 * calls * p.world() * (p.world() + 1) / 2);
    const std::vector<float> got = to_host(residual);
    p.report.expect(std::all_of(got.begin(), got.end(), [&](float x) { return x == want; }), "sums in a graph");
  }
  p.ranks.reset();
}

// The last rank never comes: the others' kernels end in time, all of them, and say whom they waited for.
void check_absence(Process& p) {
  const int hidden = 1024;
  p.open(16, 8, hidden, 256);
  p.comm->limit = 0.5;
  p.ranks->begin_step();
  Tensor residual = tensor(std::vector<float>(16 * hidden), DType::f32, 16, hidden), out = poisoned(DType::bf16, 16, hidden);
  Tensor delta = tensor(std::vector<float>(16 * hidden, 1), DType::f32, 16, hidden);
  const float* scale = to_device(std::vector<float>(hidden, 1));
  if (p.rank() + 1 < p.world()) {
    const auto begin = Clock::now();
    for (int i = 0; i < 30; ++i) p.ranks->sum_add_norm(out, residual, delta, scale, 1e-5f);
    std::string said;
    try {
      p.finish();
    } catch (const CommError& error) {
      said = error.what();
    }
    const double taken = std::chrono::duration<double>(Clock::now() - begin).count();
    if (p.rank() == 0) std::printf("%s after %.2f s\n", said.c_str(), taken);
    p.report.expect(said.find("rank " + std::to_string(p.world() - 1) + " has been silent") == 0 && taken > 0.4 && taken < 2,
                    "a rank that never comes: '" + said + "' after " + std::to_string(taken) + " s");
  }
  p.comm->barrier();
  p.comm->limit = 30;
  p.ranks.reset();
}

// Microseconds a call takes in a graph of 64, the median of 9 replays.
double time_calls(Process& p, const std::function<void()>& call) {
  auto calls = [&] {
    for (int i = 0; i < 64; ++i) call();
  };
  calls();
  OARLOCK_CUDA_CHECK(cudaStreamSynchronize(p.stream));
  const Graph graph(p.stream, calls);
  cudaEvent_t from, to;
  OARLOCK_CUDA_CHECK(cudaEventCreate(&from));
  OARLOCK_CUDA_CHECK(cudaEventCreate(&to));
  std::vector<float> times;
  for (int i = 0; i < 11; ++i) {
    p.comm->barrier();
    OARLOCK_CUDA_CHECK(cudaEventRecord(from, p.stream));
    graph.launch(p.stream);
    OARLOCK_CUDA_CHECK(cudaEventRecord(to, p.stream));
    OARLOCK_CUDA_CHECK(cudaStreamSynchronize(p.stream));
    float milliseconds = 0;
    OARLOCK_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, from, to));
    if (i >= 2) times.push_back(milliseconds * 1000 / 64);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void bench(Process& p) {
  const int hidden = 4096, most = 8192;
  p.open(most, 256, hidden, 128256);
  const std::vector<float> ones(hidden, 1);
  const float* scale = to_device(ones);
  if (p.rank() == 0) {
    std::printf("%s, %d ranks, rows of %d: us a sum with residual and norm, of them its own norm\n",
                p.ranks->by_peer_memory() ? "peer memory" : "NCCL", p.world(), hidden);
  }
  for (bool exact : {false, true}) {
    p.ranks.reset();
    p.limits.exact = exact;
    p.open(most, 256, hidden, 128256);
    for (int rows : {1, 2, 8, 32, 64, 128, 256, 1024, 8192}) {
      const size_t count = size_t(rows) * hidden;
      Tensor residual = tensor(std::vector<float>(count), DType::f32, rows, hidden), out = poisoned(DType::bf16, rows, hidden);
      Tensor delta = tensor(std::vector<float>(count, 0.001f), DType::f32, rows, hidden);
      const double both = time_calls(p, [&] { p.ranks->sum_add_norm(out, residual, delta, scale, 1e-5f); });
      const double norm = time_calls(p, [&] { add_norm(p.stream, out, residual, &delta, scale, 1e-5f); });
      p.finish();
      if (p.rank() == 0) std::printf("  %s %5d rows %8.2f %8.2f\n", exact ? "exact" : "     ", rows, both, norm);
      std::fflush(stdout);
      cudaFree(residual.data), cudaFree(out.data), cudaFree(delta.data);
    }
  }
  const int64_t width = p.limits.vocab_starts[size_t(p.rank()) + 1] - p.limits.vocab_starts[size_t(p.rank())];
  std::vector<int32_t> nothing(256);
  int32_t *token = to_device(nothing), *status = to_device(nothing);
  const Sampled sampled{token, reinterpret_cast<float*>(to_device(nothing)), nullptr, nullptr, status};
  for (int rows : {1, 32, 128}) {
    Tensor logits = poisoned(DType::f32, rows, width);
    OARLOCK_CUDA_CHECK(cudaMemset(logits.data, 0, size_t(rows * width) * 4));
    const double best = time_calls(p, [&] { p.ranks->sample(logits, true, sampled, nullptr); });
    const double all = time_calls(p, [&] { p.ranks->sample(logits, false, sampled, [](Tensor) {}); });
    p.finish();
    if (p.rank() == 0) std::printf("  %5d rows: likeliest tokens %.2f us, all logits to rank 0 %.2f us\n", rows, best, all);
  }
  p.ranks.reset();
}

int as_rank(Board& board, int rank, int world, const std::string& what, const std::string& transports) {
  const auto comm = std::make_shared<BoardComm>(board, rank, world);
  int count = 0;
  OARLOCK_CUDA_CHECK(cudaGetDeviceCount(&count));
  if (rank == 0 && count < world) std::printf("%d ranks share %d devices\n", world, count);
  const Device device = open_device(rank % count);
  int failures = 0;
  for (Transport transport : {Transport::peer, Transport::nccl}) {
    const std::string called = transport == Transport::peer ? "peer" : "nccl";
    if (transports != "both" && transports != called) continue;
    Process p{comm, transport, nullptr, {}, nullptr, {}, device};
    p.report.quick = what == "quick";
    OARLOCK_CUDA_CHECK(cudaStreamCreateWithFlags(&p.stream, cudaStreamNonBlocking));
    auto run = [&](const char* part, void (*body)(Process&)) {
      const int before = p.report.cases;
      const auto begin = Clock::now();
      body(p);
      if (rank == 0)
        std::printf("%s by %s: %d cases, %.1f s\n", part, called.c_str(), p.report.cases - before,
                    std::chrono::duration<double>(Clock::now() - begin).count());
      std::fflush(stdout);
    };
    if (what != "bench") {
      run("sums", check_sums);
      if (transport == Transport::peer) run("sent", check_sent);
      run("tokens", check_tokens);
      run("graphs", check_graphs);
      if (transport == Transport::peer) run("absence", check_absence);
    }
    if (what == "bench" || what == "all") run("bench", bench);
    failures += p.report.failures;
    comm->barrier();
  }
  return failures;
}

}  // namespace
}  // namespace oarlock::cuda::check

int main(int count, char** arguments) {
  using namespace oarlock::cuda::check;
  const std::string what = count > 1 ? arguments[1] : "all", transports = count > 3 ? arguments[3] : "both";
  const int world = count > 2 ? std::atoi(arguments[2]) : 2;
  void* memory = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Board& board = *new (memory) Board;
  std::vector<pid_t> children;
  for (int rank = 0; rank < world; ++rank) {
    const pid_t child = fork();  // before anything touches a device
    if (child == 0) {
      int failures = 1;
      try {
        failures = as_rank(board, rank, world, what, transports);
      } catch (const std::exception& error) {
        std::printf("FAILED rank %d: %s\n", rank, error.what());
      }
      std::fflush(stdout);
      _exit(failures == 0 ? 0 : 1);
    }
    children.push_back(child);
  }
  bool good = true;
  for (pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    good &= WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  std::printf("%s\n", good ? "all ranks agree" : "FAILED");
  return good ? 0 : 1;
}
