#include "comm/ucx_library.h"

#include <dlfcn.h>

#include <cstdlib>

#include "base/error.h"

namespace oarlock {
namespace {

template <typename Function>
void find(void* library, const char* name, Function& into) {
  into = reinterpret_cast<Function>(dlsym(library, name));
  if (into == nullptr) throw DeviceError(concat("UCX's library lacks ", name, ": version 1.13 or newer is needed"));
}

UcxLibrary open(const std::string& path) {
  // Signals and memory hooks are ours; a silent peer is our message, not a line of UCX's log.
  setenv("UCX_ERROR_SIGNALS", "", 0);
  setenv("UCX_MEM_EVENTS", "n", 0);
  setenv("UCX_LOG_LEVEL", "fatal", 0);
  setenv("UCX_WARN_UNUSED_ENV_VARS", "n", 0);
  // Sums of a few hundred KiB take half the time in larger segments.
  setenv("UCX_TCP_TX_SEG_SIZE", "256k", 0);
  setenv("UCX_TCP_RX_SEG_SIZE", "256k", 0);
  const char* file = path.empty() ? "libucp.so.0" : path.c_str();
  void* ucp = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (ucp == nullptr) {
    throw DeviceError(concat("a model split over ranks needs UCX, which can't be loaded: ", dlerror(),
                             "; install libucx-cu13 (Python) or libucx0 (Debian)"));
  }
  UcxLibrary ucx;
  find(ucp, "ucp_init_version", ucx.init_version);
  find(ucp, "ucp_config_read", ucx.config_read);
  find(ucp, "ucp_config_modify", ucx.config_modify);
  find(ucp, "ucp_config_release", ucx.config_release);
  find(ucp, "ucp_cleanup", ucx.cleanup);
  find(ucp, "ucp_worker_create", ucx.worker_create);
  find(ucp, "ucp_worker_destroy", ucx.worker_destroy);
  find(ucp, "ucp_worker_get_address", ucx.worker_get_address);
  find(ucp, "ucp_worker_release_address", ucx.worker_release_address);
  find(ucp, "ucp_worker_progress", ucx.worker_progress);
  find(ucp, "ucp_worker_get_efd", ucx.worker_get_efd);
  find(ucp, "ucp_worker_arm", ucx.worker_arm);
  find(ucp, "ucp_ep_create", ucx.ep_create);
  find(ucp, "ucp_ep_close_nbx", ucx.ep_close_nbx);
  find(ucp, "ucp_tag_send_nbx", ucx.tag_send_nbx);
  find(ucp, "ucp_tag_recv_nbx", ucx.tag_recv_nbx);
  find(ucp, "ucp_request_check_status", ucx.request_check_status);
  find(ucp, "ucp_request_cancel", ucx.request_cancel);
  find(ucp, "ucp_request_free", ucx.request_free);
  find(ucp, "ucs_status_string", ucx.status_string);
  return ucx;
}

}  // namespace

const UcxLibrary& ucx_library(const std::string& path) {
  static const UcxLibrary library = open(path);
  return library;
}

}  // namespace oarlock
