// Errors of the core: every refusal names what was wrong, what was given and what would be right.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace oarlock {

// A caller's mistake: wrong shape, unknown name, a limit exceeded. Becomes ValueError in Python.
struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// The machine's refusal: out of memory, a device fault. Becomes RuntimeError in Python.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw InvalidArgument(concat(parts...));
}

}  // namespace oarlock
