#include "cuda/ranks/peer_memory.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "base/error.h"
#include "cuda/device.h"

namespace oarlock::cuda {
namespace {

// What a rank tells the others. Handles are only good within one running kernel.
struct Card {
  char kernel[64];
  cudaIpcMemHandle_t memory;
};

void put_kernel(Card& card) {
  std::string id;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), id);
  std::strncpy(card.kernel, id.c_str(), sizeof(card.kernel) - 1);
}

// Where peer access does not work though it seems to, NCCL has to be told, and so are we.
bool is_off() {
  const char* off = std::getenv("NCCL_P2P_DISABLE");
  return off != nullptr && std::strcmp(off, "1") == 0;
}

template <typename T>
std::vector<T> gather_all(Comm& comm, const T& mine) {
  std::vector<T> all(size_t(comm.world()));
  comm.all_gather(&mine, all.data(), std::vector<size_t>(all.size(), sizeof(T)));
  return all;
}

}  // namespace

PeerMemory::PeerMemory(Comm& comm, size_t bytes) : rank_(comm.rank()) {
  // A rank without room tells the others before it fails.
  const bool room = cudaMalloc(reinterpret_cast<void**>(&own_), std::max<size_t>(bytes, 256)) == cudaSuccess;
  Card mine{};
  put_kernel(mine);
  bool good = room && !is_off() && cudaMemset(own_, 0, bytes) == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess &&
              cudaIpcGetMemHandle(&mine.memory, own_) == cudaSuccess;
  const std::vector<Card> cards = gather_all(comm, mine);
  const std::vector<uint8_t> rooms = gather_all(comm, uint8_t(room));
  if (std::find(rooms.begin(), rooms.end(), 0) != rooms.end()) {
    cudaGetLastError();
    close();
    throw DeviceError(concat("a rank's device has no room for the ", bytes, " bytes that ranks exchange"));
  }
  of_.assign(cards.size(), nullptr);
  for (size_t r = 0; r < cards.size() && good; ++r) {
    void* theirs = own_;
    if (int(r) != rank_) {
      good = std::strcmp(cards[r].kernel, mine.kernel) == 0 &&
             cudaIpcOpenMemHandle(&theirs, cards[r].memory, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess;
    }
    if (good) of_[r] = static_cast<uint8_t*>(theirs);
  }
  cudaGetLastError();  // a refusal is no error here
  const std::vector<uint8_t> all = gather_all(comm, uint8_t(good));
  if (std::find(all.begin(), all.end(), 0) != all.end()) close();
}

PeerMemory::~PeerMemory() { close(); }

void PeerMemory::close() {
  for (size_t r = 0; r < of_.size(); ++r)
    if (int(r) != rank_ && of_[r] != nullptr) cudaIpcCloseMemHandle(of_[r]);
  of_.clear();
  cudaFree(own_);
  own_ = nullptr;
}

}  // namespace oarlock::cuda
