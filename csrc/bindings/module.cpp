#include <pybind11/pybind11.h>

#include <string>

#include "base/error.h"
#include "base/isa.h"
#include "base/ops.h"
#include "base/threads.h"
#include "bindings/comm.h"
#include "bindings/executor.h"
#include "cpu/gemm/machine.h"
#include "model/executor.h"

namespace py = pybind11;

namespace oarlock {
namespace {

double matrix_rate(const std::string& kind, int threads, double seconds) {
  ThreadPool pool(threads);
  if (kind == "bf16") return cpu::matrix_rate(cpu::MatrixKind::bf16, pool, seconds);
  if (kind == "int8") return cpu::matrix_rate(cpu::MatrixKind::int8, pool, seconds);
  if (kind == "f32") return cpu::matrix_rate(cpu::MatrixKind::f32, pool, seconds);
  throw InvalidArgument(concat("matrix kind '", kind, "' is not one of bf16, int8, f32"));
}

}  // namespace
}  // namespace oarlock

PYBIND11_MODULE(_C, module) {
  using namespace oarlock;
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const InvalidArgument& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const CommError& error) {
      PyErr_SetString(PyExc_ConnectionError, error.what());
    } catch (const DeviceError& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
  });
  bind_comm(module);
  bind_executor(module);
  module.attr("BLOCK_TOKENS") = kBlockTokens;
  module.attr("MAX_TOP_LOGPROBS") = kMaxTopLogprobs;
  module.def("devices", [] {
    py::list names;
    names.append("cpu");
#ifdef OARLOCK_CUDA
    names.append("cuda");
#endif
    return names;
  });
  // Devices of CUDA that this process sees; 0 without a driver.
  module.def("cuda_device_count", [] {
#ifdef OARLOCK_CUDA
    return cuda_device_count();
#else
    return 0;
#endif
  });
  module.def("isa", [] { return std::string(name_of(selected_isa())); });
  module.def(
      "read_bandwidth",
      [](int threads, double seconds) {
        ThreadPool pool(threads);
        return cpu::read_bandwidth(pool, seconds);
      },
      py::arg("threads"), py::arg("seconds"), py::call_guard<py::gil_scoped_release>());
  module.def("matrix_rate", &matrix_rate, py::arg("kind"), py::arg("threads"), py::arg("seconds"),
             py::call_guard<py::gil_scoped_release>());
}
