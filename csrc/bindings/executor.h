// oarlock_runtime._C.Executor.
#pragma once

#include <pybind11/pybind11.h>

namespace oarlock {

void bind_executor(pybind11::module_& module);

}  // namespace oarlock
