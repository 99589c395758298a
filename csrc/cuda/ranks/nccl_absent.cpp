// In place of NCCL where its header was missing at build time.
#include "base/error.h"
#include "cuda/ranks/nccl_comm.h"

namespace oarlock::cuda {

std::unique_ptr<NcclComm> make_nccl_comm(Comm&, const std::string&) {
  throw DeviceError(
      "GPUs can't reach each other's memory, and this build has no NCCL: its header was missing (nvidia-nccl-cu13)");
}

}  // namespace oarlock::cuda
