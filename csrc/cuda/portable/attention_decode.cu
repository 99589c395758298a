// Attention of sequences that bring one token. Items are those of attention_decode.cu in the folder above; a block of four
// warps takes one after the other, each warp 16 of a block's 64 keys, and merges them in the memory that the keys were in.
#include "cuda/attention_decode.cuh"
#include "cuda/portable/copy.cuh"
#include "cuda/portable/portable.h"

namespace oarlock::cuda::portable {
namespace {

using namespace decode;

constexpr int kWarps = kBlockTokens / 16, kThreads = kWarps * 32;

template <typename T, int D, bool wide>
__global__ void __launch_bounds__(kThreads, 2) decode_kernel(const Params p) {
  using R = BlockRing<D>;
  static_assert(kWarps * 16 * merge_stride(D) * int(sizeof(float)) <= R::kBytes, "the merge has the ring's place");
  extern __shared__ __align__(128) uint8_t ring[];
  int* starts = reinterpret_cast<int*>(ring + R::kBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  depend();
  sum_items(starts, p.queries, [&](int query) { return items_of(p, query); });
  release_successor();
  const int items = starts[p.queries];
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Item item = find_item(p, starts, index);
    const int32_t* table = table_of(p, item);
    State<T, D, wide> state(p, item, lane);
    walk_blocks<D>(
        ring, p.keys, p.values, item.first, item.last,
        [&](int block) { return (int64_t(table[block]) * p.kv_heads + item.kv_head) * R::kHalfBytes; },
        [&](int block, uint32_t at) { take_block(p, state, at, block * kBlockTokens + warp * 16, item.context, lane); });
    merge_item<T, D, wide, kWarps>(p, item, state, reinterpret_cast<float*>(ring), [] { __syncthreads(); });
    __syncthreads();  // the ring is free again
  }
}

template <typename T, int D, bool wide>
void go(cudaStream_t stream, const Device& device, const Params& p) {
  static Occupancy occupancy;
  const size_t bytes = BlockRing<D>::kBytes + size_t(p.queries + 1024) / 1024 * 4096;
  const int blocks = occupancy.of(decode_kernel<T, D, wide>, device, kThreads, bytes);
  launch(stream, decode_kernel<T, D, wide>, dim3(unsigned(device.multiprocessors * blocks)), kThreads, bytes, p);
}

template <typename T>
void by_shape(cudaStream_t stream, const Device& device, const Params& p, int head_dim) {
  const bool wide = p.heads / p.kv_heads > 8;
  if (head_dim == 64) return wide ? go<T, 64, true>(stream, device, p) : go<T, 64, false>(stream, device, p);
  if (head_dim == 128) return wide ? go<T, 128, true>(stream, device, p) : go<T, 128, false>(stream, device, p);
  throw InvalidArgument(concat("heads of ", head_dim, " elements have no CUDA kernel; 64 and 128 have"));
}

void launch_decode(cudaStream_t stream, const Device& device, const Params& p, DType type, int head_dim) {
  if (type == DType::bf16) return by_shape<__nv_bfloat16>(stream, device, p, head_dim);
  by_shape<__half>(stream, device, p, head_dim);
}

}  // namespace

void attend_decode(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor out, Tensor qkv,
                   const AttentionShape& shape, KvLayer cache, const Batch& batch, bool batch_invariant) {
  launch_decode(stream, device, decode_params(device, workspace, out, qkv, shape, cache, batch, batch_invariant), qkv.dtype,
                shape.head_dim);
}

void attend_each(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor out, Tensor qkv,
                 const AttentionShape& shape, KvLayer cache, const Batch& batch) {
  launch_each(workspace, out, qkv, shape, cache, batch,
              [&](const Params& p) { launch_decode(stream, device, p, qkv.dtype, shape.head_dim); });
}

}  // namespace oarlock::cuda::portable
