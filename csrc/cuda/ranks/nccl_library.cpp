#include "cuda/ranks/nccl_library.h"

#include <dlfcn.h>

#include "base/error.h"

namespace oarlock::cuda {
namespace {

constexpr int kOldest = 21800;  // 2.18

template <typename Function>
void find(void* library, const char* name, Function& into) {
  into = reinterpret_cast<Function>(dlsym(library, name));
  if (into == nullptr) throw DeviceError(concat("NCCL's library lacks ", name, ": version 2.18 or newer is needed"));
}

NcclLibrary open(const std::string& path) {
  void* library = dlopen(path.empty() ? "libnccl.so.2" : path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw DeviceError(concat("GPUs that can't reach each other's memory need NCCL, which can't be loaded: ", dlerror(),
                             "; install nvidia-nccl-cu13"));
  }
  NcclLibrary nccl;
  find(library, "ncclGetVersion", nccl.get_version);
  int version = 0;
  nccl.get_version(&version);
  if (version < kOldest) throw DeviceError(concat("NCCL's version is ", version, "; ", kOldest, " or newer is needed"));
  find(library, "ncclGetErrorString", nccl.get_error_string);
  find(library, "ncclGetLastError", nccl.get_last_error);
  find(library, "ncclGetUniqueId", nccl.get_unique_id);
  find(library, "ncclCommInitRankConfig", nccl.init_rank_config);
  find(library, "ncclCommGetAsyncError", nccl.get_async_error);
  find(library, "ncclCommAbort", nccl.abort);
  find(library, "ncclAllReduce", nccl.all_reduce);
  find(library, "ncclAllGather", nccl.all_gather);
  find(library, "ncclBroadcast", nccl.broadcast);
  find(library, "ncclSend", nccl.send);
  find(library, "ncclRecv", nccl.recv);
  find(library, "ncclGroupStart", nccl.group_start);
  find(library, "ncclGroupEnd", nccl.group_end);
  return nccl;
}

}  // namespace

const NcclLibrary& nccl_library(const std::string& path) {
  static const NcclLibrary library = open(path);
  return library;
}

}  // namespace oarlock::cuda
