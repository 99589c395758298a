// Attention of sequences that bring one token over the blocks that they share. Items are those of attention_shared.cu in the
// folder above: each of eight warps has 16 rows and looks at every key.
#include "cuda/attention_shared.cuh"
#include "cuda/portable/copy.cuh"
#include "cuda/portable/portable.h"

namespace oarlock::cuda::portable {
namespace {

using namespace shared_prefix;

template <typename T, int D>
__global__ void __launch_bounds__(kThreads, 1) shared_kernel(const Params p) {
  using R = BlockRing<D>;
  extern __shared__ __align__(128) uint8_t ring[];
  __shared__ int starts[kMaxGroups + 1];
  depend();
  sum_items(starts, p.groups, [&](int group) { return items_of(p, group); });
  release_successor();
  const int items = starts[p.groups], group = p.heads / p.kv_heads, first_row = threadIdx.x / 32 * 16;
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Item item = find_item(p, starts, index);
    const int32_t* table = p.block_tables + int64_t(p.members[item.first_member]) * p.table_stride;
    const Members members(p, item);
    Rows<T, D> rows = load_rows<T, D>(p, item, members);
    walk_blocks<D>(
        ring, p.keys, p.values, item.first, item.last,
        [&](int block) { return (int64_t(table[block]) * p.kv_heads + item.kv_head) * R::kHalfBytes; },
        [&](int, uint32_t at) {
          if (first_row < item.members * group) rows.take_block(at, p.scale, false, [](int, int) { return true; });
        });
    store_parts(p, item, members, rows);
  }
}

template <typename T, int D>
void go(cudaStream_t stream, const Device& device, const Params& p) {
  static Occupancy occupancy;
  const int blocks = occupancy.of(shared_kernel<T, D>, device, kThreads, BlockRing<D>::kBytes);
  launch(stream, shared_kernel<T, D>, dim3(unsigned(device.multiprocessors * blocks)), kThreads, BlockRing<D>::kBytes, p);
}

template <typename T>
void by_shape(cudaStream_t stream, const Device& device, const Params& p, int head_dim) {
  if (head_dim == 64) return go<T, 64>(stream, device, p);
  if (head_dim == 128) return go<T, 128>(stream, device, p);
  throw InvalidArgument(concat("heads of ", head_dim, " elements have no CUDA kernel; 64 and 128 have"));
}

}  // namespace

void attend_shared(cudaStream_t stream, const Device& device, const AttentionWorkspace& workspace, Tensor qkv,
                   const AttentionShape& shape, KvLayer cache, const Batch& batch) {
  const Params p = params_of(workspace, qkv, shape, cache, batch);
  if (qkv.dtype == DType::bf16) return by_shape<__nv_bfloat16>(stream, device, p, shape.head_dim);
  by_shape<__half>(stream, device, p, shape.head_dim);
}

}  // namespace oarlock::cuda::portable
