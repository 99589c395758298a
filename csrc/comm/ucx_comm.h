// Collectives between processes over UCX: TCP, or RDMA where the hosts have it. The calling thread makes all the progress
// itself, so that on few cores no helper thread competes with the computation.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/comm.h"

namespace oarlock {

// A communicator before and after it is formed: made, then connect()ed once everybody's address is known, then used.
class MemberComm : public Comm {
 public:
  // What the other ranks need to reach this one; bytes, not text.
  virtual const std::string& address() const = 0;
  // addresses and names by rank; a name is what errors call the peer. Proves every connection with a barrier.
  virtual void connect(const std::vector<std::string>& addresses, const std::vector<std::string>& names) = 0;
  // From the next call on.
  virtual void set_time_limit(double seconds) = 0;
  // Seconds that this rank has spent in collectives, waiting for peers included, but not those in which it waited for
  // rank 0 to broadcast.
  virtual double seconds() const = 0;
};

// time_limit: seconds that a call may wait for a peer. library: the file of libucp, or empty for the system's. DeviceError
// when UCX can't be had or finds no transport.
std::shared_ptr<MemberComm> make_ucx_comm(int rank, int world, double time_limit, const std::string& library);

}  // namespace oarlock
