// What the ranks of a split model exchange in a step on CUDA: sums of their shares of a product, and what is needed to draw
// tokens from a vocabulary that each of them holds a part of. Everything is enqueued on one stream and may be captured in a
// graph.
//
// Devices that reach each other's memory exchange by kernels of our own (sums.cu, tokens.cu), others by NCCL.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/comm.h"
#include "base/ops.h"
#include "cuda/ranks/channel.h"
#include "cuda/ranks/nccl_comm.h"
#include "cuda/ranks/peer_memory.h"
#include "cuda/ranks/tokens.h"

namespace oarlock::cuda {

// How ranks talk; automatic: through peer memory where all reach each other.
enum class Transport { automatic, peer, nccl };

struct RanksLimits {
  int64_t max_tokens = 0;  // rows of a sum
  int64_t max_rows = 0;    // rows of logits
  int64_t hidden = 0;      // columns of a sum
  bool exact = false;      // sums of any number of rows are of float32
  std::vector<int64_t> vocab_starts;
  std::string nccl_library;  // its file; empty: as the system finds it
  Transport transport = Transport::automatic;
};

class Ranks {
 public:
  // Every rank calls this alike, its device selected. DeviceError when the devices can't talk.
  Ranks(std::shared_ptr<Comm> comm, cudaStream_t stream, const RanksLimits& limits);
  ~Ranks();
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  // As Ops has them.
  void all_reduce(Tensor x);
  void sum_add_norm(Tensor out, Tensor residual, Tensor delta, const float* weight, float epsilon);
  // Lets a product send delta to the peers as it writes it, so that the next sum_add_norm, of the same delta, need not; false
  // when these have no memory for it, or `send` says that it did not.
  bool share(Tensor delta, const std::function<bool(const Channel&)>& send);
  // sampled gets the tokens on every rank. plain: every row's likeliest token is the answer; otherwise draw is called on rank 0
  // with all logits, to fill it.
  void sample(Tensor part, bool plain, const Sampled& sampled, const std::function<void(Tensor)>& draw);

  // Before a step: kernels of it wait no longer than comm's time limit.
  void begin_step();
  // CommError when a kernel has given up waiting for a rank.
  void check() const;
  // Ends what waits on the device, soon.
  void abort();
  // Seconds that this device has spent in sums, waiting for the other ranks included. Waits for the device.
  double seconds() const;
  bool by_peer_memory() const { return peers_ != nullptr; }

 private:
  struct Layout;

  Layout layout() const;
  void open_peer_memory();
  // On rank 0 the logits of everybody's tokens.
  Tensor gather(Tensor part);

  const std::shared_ptr<Comm> comm_;
  const cudaStream_t stream_;
  const RanksLimits limits_;
  std::unique_ptr<PeerMemory> peers_;
  std::unique_ptr<NcclComm> nccl_;
  WaitControl* control_ = nullptr;
  uint8_t* state_ = nullptr;  // counters of the channels, and the contest of likeliest tokens
  Channel sums_, candidates_, tokens_;
  Gathering gathering_;
  Contest contest_;
  const void* shared_ = nullptr;                  // the delta that the peers have been sent
  uint64_t* found_ = nullptr;                     // candidates of NCCL: [rows], then [world, rows]
  float *gathered_ = nullptr, *whole_ = nullptr;  // logits on rank 0: as NCCL brings them, and in rows
  std::vector<void*> allocations_;
};

}  // namespace oarlock::cuda
