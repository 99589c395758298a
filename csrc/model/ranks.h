// How the ranks of a split model share a step's plan: rank 0 checks it and broadcasts it, the others follow.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/comm.h"
#include "model/plan.h"

namespace oarlock {

// What a rank was told to do next.
enum class Order : uint8_t { step, beat, stop };

class PlanChannel {
 public:
  // Allocates for the largest plan that limits allow.
  PlanChannel(std::shared_ptr<Comm> comm, const Limits& limits);

  // Rank 0: tells every rank. The plan with each row's mark for all to see; valid until the next call.
  Plan lead(const Plan& plan);
  // Rank 0: a beat proves that every rank answers, and tells them that rank 0 does; stop ends their loops.
  void lead(Order order);
  // Another rank: waits for the next order; the plan, which says nothing of sampling, is filled when it is a step.
  Order follow(Plan& plan);

 private:
  struct Header {
    int32_t order, tokens, sequences, rows, block_table_stride, fed;  // fed: tokens come of the step before
  };

  Plan view(const Header& header);

  std::shared_ptr<Comm> comm_;
  std::vector<int32_t> buffer_;
};

}  // namespace oarlock
