// Attention of sequences that bring one token over the blocks that they share: keys and values of a prefix are read once for a
// group, not once for each of its sequences. An item of work is one group, one KV head, up to 128 query rows (a row is a head
// of a sequence) and one part of the shared blocks. A producer warp keeps blocks in flight; each of eight warps has 16 rows
// and looks at every key. What comes out is a part like those of attention_decode.cu, which adds the rest of each context
// and merges.
#include "cuda/attention_shared.cuh"

namespace oarlock::cuda {
namespace {

using namespace shared_prefix;

template <int D>
struct SharedRing {
  static constexpr int kHalfBytes = D / 64 * kGroupBytes, kStageBytes = 2 * kHalfBytes;  // keys, then values
  static constexpr int kStages = 6 * (128 / D);
  static constexpr size_t kBytes = 1024 + kStages * kStageBytes;
};

template <typename T, int D>
__global__ void __launch_bounds__(kThreads + 32, 1) shared_kernel(const Params p) {
  using S = SharedRing<D>;
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[S::kStages], empty[S::kStages];
  __shared__ int starts[kMaxGroups + 1];
  uint8_t* ring = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared) + 1023) & ~uintptr_t(1023));
  const int group = p.heads / p.kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  if (threadIdx.x == 0) {
    for (int s = 0; s < S::kStages; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], kThreads);
    barrier_init_fence();
  }
  sum_items(starts, p.groups, [&](int g) { return items_of(p, g); });
  release_successor();
  const int items = starts[p.groups];
  depend();

  if (warp == kWarps) {
    if (lane != 0) return;
    int stage = 0, phase = 1;
    for (int index = blockIdx.x; index < items; index += gridDim.x) {
      const Item item = find_item(p, starts, index);
      const int32_t* table = p.block_tables + int64_t(p.members[item.first_member]) * p.table_stride;
      for (int block = item.first; block < item.last; ++block) {
        const int64_t at = (int64_t(table[block]) * p.kv_heads + item.kv_head) * S::kHalfBytes;
        barrier_wait(&empty[stage], phase);
        barrier_expect(&full[stage], S::kStageBytes);
        bulk_load(ring + stage * S::kStageBytes, static_cast<const uint8_t*>(p.keys) + at, S::kHalfBytes, &full[stage]);
        bulk_load(ring + stage * S::kStageBytes + S::kHalfBytes, static_cast<const uint8_t*>(p.values) + at, S::kHalfBytes,
                  &full[stage]);
        if (++stage == S::kStages) stage = 0, phase ^= 1;
      }
    }
    return;
  }

  int stage = 0, phase = 0;
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Item item = find_item(p, starts, index);
    const Members members(p, item);
    Rows<T, D> rows = load_rows<T, D>(p, item, members);
    for (int block = item.first; block < item.last; ++block) {
      barrier_wait(&full[stage], phase);
      if (warp * 16 < item.members * group) {
        rows.take_block(shared_address(ring + stage * S::kStageBytes), p.scale, false, [](int, int) { return true; });
      }
      barrier_arrive(&empty[stage]);
      if (++stage == S::kStages) stage = 0, phase ^= 1;
    }
    store_parts(p, item, members, rows);
  }
}

template <typename T, int D>
void go(cudaStream_t stream, const Device& device, const Params& p) {
  static const bool allowed = (allow_shared(shared_kernel<T, D>, SharedRing<D>::kBytes), true);
  (void)allowed;
  launch(stream, shared_kernel<T, D>, dim3(unsigned(device.multiprocessors)), kThreads + 32, SharedRing<D>::kBytes, p);
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

}  // namespace oarlock::cuda
