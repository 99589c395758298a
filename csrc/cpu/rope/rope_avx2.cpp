// Rotation and cache writes for avx2.
#include "cpu/rope/token.h"
#include "cpu/vector/avx2.h"

namespace oarlock::cpu::avx2 {

void rope_token(const RopeToken& token) { rope_token_any<Avx2>(token); }

}  // namespace oarlock::cpu::avx2
