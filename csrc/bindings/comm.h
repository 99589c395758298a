#pragma once

#include <pybind11/pybind11.h>

#include "comm/ucx_comm.h"

namespace oarlock {

void bind_comm(pybind11::module_& module);

}  // namespace oarlock
