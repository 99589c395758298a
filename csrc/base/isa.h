// Which instruction sets this process may use: what the processor and the kernel offer, lowered by OARLOCK_CPU_ISA.
#pragma once

#include <string>

namespace oarlock {

// Each level includes those before it. avx512 = F, BW, DQ, VL; avx512_vnni adds VNNI; avx512_bf16 adds BF16 (Zen 4/5,
// Cooper Lake); amx adds AMX bf16 and int8 tiles.
enum class Isa { avx2, avx512, avx512_vnni, avx512_bf16, amx };

const char* name_of(Isa isa);

// The highest level this machine runs. Asks Linux for permission to use AMX tiles the first time.
Isa machine_isa();

// machine_isa(), or the lower level named by OARLOCK_CPU_ISA; InvalidArgument for an unknown name or one the machine lacks.
Isa selected_isa();

}  // namespace oarlock
