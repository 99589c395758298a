// Attention for avx2: bf16 and float32 caches, arithmetic in float32.
#include "cpu/attention/float_product.h"
#include "cpu/vector/avx2.h"

namespace oarlock::cpu::avx2 {

const AttentionKernel attention_bf16 = PartitionSteps<FloatProduct<Avx2, bf16>>::kernel();
const AttentionKernel attention_f32 = PartitionSteps<FloatProduct<Avx2, float>>::kernel();

}  // namespace oarlock::cpu::avx2
