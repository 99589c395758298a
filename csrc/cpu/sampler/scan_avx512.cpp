// Passes over a row of logits for avx512.
#include "cpu/sampler/scan_steps.h"
#include "cpu/vector/avx512.h"

namespace oarlock::cpu::avx512 {

const SamplerScans sampler_scans = ScanSteps<Avx512>::table();

}  // namespace oarlock::cpu::avx512
