#include "cuda/ranks/nccl_comm.h"

#include <chrono>
#include <thread>

#include "base/error.h"
#include "cuda/ranks/nccl_library.h"

namespace oarlock::cuda {
namespace {

using Clock = std::chrono::steady_clock;

ncclDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ncclFloat32;
    case DType::f16:
      return ncclFloat16;
    case DType::bf16:
      return ncclBfloat16;
    default:
      throw InvalidArgument(concat("ranks don't sum elements of type ", int(dtype)));
  }
}

class Nccl final : public NcclComm {
 public:
  Nccl(Comm& comm, const std::string& library) : nccl_(nccl_library(library)), comm_(comm) {
    ncclUniqueId id{};
    if (comm.rank() == 0) done(nccl_.get_unique_id(&id), "an address");
    comm.broadcast(&id, sizeof(id), sizeof(id));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;  // so that no call waits longer than our limit
    done(nccl_.init_rank_config(&handle_, comm.world(), id, comm.rank(), &config), "meeting the other ranks");
  }

  ~Nccl() override { abort(); }

  void all_reduce(cudaStream_t stream, void* x, int64_t count, DType dtype) override {
    done(nccl_.all_reduce(x, x, size_t(count), type_of(dtype), ncclSum, handle(), stream), "all_reduce");
  }

  void all_gather(cudaStream_t stream, const void* mine, void* all, size_t bytes) override {
    done(nccl_.all_gather(mine, all, bytes, ncclUint8, handle(), stream), "all_gather");
  }

  void gather(cudaStream_t stream, const void* mine, void* all, const std::vector<size_t>& bytes) override {
    handle();
    done(nccl_.group_start(), "gather");
    if (comm_.rank() == 0) {
      auto* to = static_cast<char*>(all);
      for (size_t r = 0; r < bytes.size(); to += bytes[r++])
        if (r > 0) grouped(nccl_.recv(to, bytes[r], ncclUint8, int(r), handle_, stream));
    } else {
      grouped(nccl_.send(mine, bytes[size_t(comm_.rank())], ncclUint8, 0, handle_, stream));
    }
    done(nccl_.group_end(), "gather");
    if (comm_.rank() != 0 || mine == all) return;
    if (cudaMemcpyAsync(all, mine, bytes[0], cudaMemcpyDeviceToDevice, stream) != cudaSuccess) {
      throw DeviceError("a copy on the device could not be enqueued");
    }
  }

  void broadcast(cudaStream_t stream, void* data, size_t bytes) override {
    done(nccl_.broadcast(data, data, bytes, ncclUint8, 0, handle(), stream), "broadcast");
  }

  void abort() override {
    if (handle_ != nullptr) nccl_.abort(handle_);
    handle_ = nullptr;
  }

 private:
  ncclComm_t handle() const {
    if (handle_ == nullptr) throw CommError("NCCL: the communicator has failed before");
    return handle_;
  }

  // Within a group, whose end waits for all of it.
  void grouped(ncclResult_t status) {
    if (status != ncclInProgress) done(status, "gather");
  }

  // Waits until a call has been taken, no longer than the ranks' limit.
  void done(ncclResult_t status, const char* what) {
    const auto begin = Clock::now();
    while (status == ncclInProgress && handle_ != nullptr) {
      const ncclResult_t asked = nccl_.get_async_error(handle_, &status);
      if (asked != ncclSuccess) status = asked;
      if (status != ncclInProgress) break;
      const double waited = std::chrono::duration<double>(Clock::now() - begin).count();
      std::string lost;
      try {
        comm_.check();
      } catch (const CommError& error) {
        lost = error.what();
      }
      if (lost.empty() && waited > comm_.time_limit()) lost = concat(what, " took longer than ", comm_.time_limit(), " s");
      if (!lost.empty()) {
        abort();
        throw CommError(concat("NCCL: ", lost));
      }
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    if (status == ncclSuccess) return;
    const std::string reason =
        concat("NCCL: ", what, ": ", nccl_.get_error_string(status), ": ", nccl_.get_last_error(handle_));
    abort();
    throw CommError(reason);
  }

  const NcclLibrary& nccl_;
  Comm& comm_;
  ncclComm_t handle_ = nullptr;
};

}  // namespace

std::unique_ptr<NcclComm> make_nccl_comm(Comm& comm, const std::string& library) {
  return std::make_unique<Nccl>(comm, library);
}

}  // namespace oarlock::cuda
