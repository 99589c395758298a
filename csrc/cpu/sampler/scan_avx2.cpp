// Passes over a row of logits for avx2.
#include "cpu/sampler/scan_steps.h"
#include "cpu/vector/avx2.h"

namespace oarlock::cpu::avx2 {

const SamplerScans sampler_scans = ScanSteps<Avx2>::table();

}  // namespace oarlock::cpu::avx2
