// NCCL's library, opened when ranks can't reach each other's memory: a server without such ranks neither needs nor loads it.
#pragma once

#include <nccl.h>

#include <string>

namespace oarlock::cuda {

// The functions that are used, under their own names without the prefix.
struct NcclLibrary {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetLastError) get_last_error = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) init_rank_config = nullptr;
  decltype(&ncclCommGetAsyncError) get_async_error = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclBroadcast) broadcast = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) recv = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
};

// The library of the process, opened by the first call: the file at `path`, or libnccl.so.2 as the system finds it when path
// is empty. DeviceError when there is none or it is too old. Later calls ignore `path`.
const NcclLibrary& nccl_library(const std::string& path);

}  // namespace oarlock::cuda
