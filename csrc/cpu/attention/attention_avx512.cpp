// Attention for avx512: bf16 and float32 caches, arithmetic in float32.
#include "cpu/attention/float_product.h"
#include "cpu/vector/avx512.h"

namespace oarlock::cpu::avx512 {

const AttentionKernel attention_bf16 = PartitionSteps<FloatProduct<Avx512, bf16>>::kernel();
const AttentionKernel attention_f32 = PartitionSteps<FloatProduct<Avx512, float>>::kernel();

}  // namespace oarlock::cpu::avx512
