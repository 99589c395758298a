// Collectives between devices by NCCL: between hosts, where cards can't reach each other's memory, and for sums too large for
// that. Calls are enqueued on a stream and may be captured in a graph once they have run outside one.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <string>
#include <vector>

#include "base/comm.h"
#include "base/dtype.h"

namespace oarlock::cuda {

class NcclComm {
 public:
  virtual ~NcclComm() = default;
  // x[i] becomes the sum of every rank's x[i].
  virtual void all_reduce(cudaStream_t stream, void* x, int64_t count, DType dtype) = 0;
  // all: [world, bytes].
  virtual void all_gather(cudaStream_t stream, const void* mine, void* all, size_t bytes) = 0;
  // Rank 0 receives rank r's bytes[r] bytes behind those of the ranks before it.
  virtual void gather(cudaStream_t stream, const void* mine, void* all, const std::vector<size_t>& bytes) = 0;
  virtual void broadcast(cudaStream_t stream, void* data, size_t bytes) = 0;
  // Ends what runs on the device; from then on every call fails.
  virtual void abort() = 0;
};

// Every rank calls this alike; comm brings them together. library: NCCL's file, or empty for the system's. DeviceError when
// NCCL can't be had, CommError when the ranks do not come together within comm's time limit.
std::unique_ptr<NcclComm> make_nccl_comm(Comm& comm, const std::string& library);

}  // namespace oarlock::cuda
