#include "bindings/comm.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

namespace py = pybind11;

namespace oarlock {
namespace {

void connect(MemberComm& comm, const std::vector<py::bytes>& addresses, const std::vector<std::string>& names) {
  std::vector<std::string> raw(addresses.begin(), addresses.end());
  py::gil_scoped_release released;
  comm.connect(raw, names);
}

void all_reduce(MemberComm& comm, py::array_t<float, py::array::c_style>& values) {
  float* data = values.mutable_data();
  int64_t count = values.size();
  py::gil_scoped_release released;
  comm.all_reduce(data, count);
}

}  // namespace

void bind_comm(py::module_& module) {
  py::class_<MemberComm, std::shared_ptr<MemberComm>>(module, "Comm")
      .def(py::init(&make_ucx_comm), py::arg("rank"), py::arg("world"), py::arg("time_limit"), py::arg("library"))
      .def_property_readonly("address", [](const MemberComm& comm) { return py::bytes(comm.address()); })
      .def_property_readonly("seconds", &MemberComm::seconds)
      .def("connect", &connect, py::arg("addresses"), py::arg("names"))
      .def("set_time_limit", &MemberComm::set_time_limit, py::arg("seconds"))
      .def("all_reduce", &all_reduce, py::arg("values"))
      .def("barrier", &MemberComm::barrier, py::call_guard<py::gil_scoped_release>())
      .def("abort", &MemberComm::abort, py::arg("reason"));
}

}  // namespace oarlock
