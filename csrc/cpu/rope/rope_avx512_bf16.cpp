// Rotation and cache writes for avx512_bf16.
#include "cpu/rope/token.h"
#include "cpu/vector/avx512.h"

namespace oarlock::cpu::avx512_bf16 {

void rope_token(const RopeToken& token) { rope_token_any<Avx512Bf16>(token); }

}  // namespace oarlock::cpu::avx512_bf16
