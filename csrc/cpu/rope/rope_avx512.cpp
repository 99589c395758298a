// Rotation and cache writes for avx512.
#include "cpu/rope/token.h"
#include "cpu/vector/avx512.h"

namespace oarlock::cpu::avx512 {

void rope_token(const RopeToken& token) { rope_token_any<Avx512>(token); }

}  // namespace oarlock::cpu::avx512
