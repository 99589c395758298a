// Reads a Python StepPlan (an object whose attributes are numpy arrays) into a model/plan.h Plan, without copying.
#pragma once

#include <pybind11/numpy.h>

#include "model/plan.h"

namespace oarlock {

// Borrows the arrays' memory: the object must outlive the Plan. InvalidArgument names an attribute of the wrong dtype or
// shape.
Plan read_plan(const pybind11::object& step, const ModelConfig& config);

}  // namespace oarlock
