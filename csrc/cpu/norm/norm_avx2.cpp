// RMS norm rows for avx2.
#include "cpu/norm/row.h"
#include "cpu/vector/avx2.h"

namespace oarlock::cpu::avx2 {

void add_norm_row(const NormRow& row) { add_norm_row_any<Avx2>(row); }

}  // namespace oarlock::cpu::avx2
