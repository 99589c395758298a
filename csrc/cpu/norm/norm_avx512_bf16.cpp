// RMS norm rows for avx512_bf16.
#include "cpu/norm/row.h"
#include "cpu/vector/avx512.h"

namespace oarlock::cpu::avx512_bf16 {

void add_norm_row(const NormRow& row) { add_norm_row_any<Avx512Bf16>(row); }

}  // namespace oarlock::cpu::avx512_bf16
