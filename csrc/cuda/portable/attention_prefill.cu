// Attention of sequences that bring several tokens. A tile is 128 (token, head) rows, 16 for each of eight warps, which walk
// over the sequence's blocks together. Blocks that a row does not see change nothing in it, so a row's result does not depend
// on how its prompt was cut.
#include "cuda/attention_prefill.cuh"
#include "cuda/attention_rows.cuh"
#include "cuda/portable/copy.cuh"
#include "cuda/portable/portable.h"

namespace oarlock::cuda::portable {
namespace {

using namespace prefill;

constexpr int kThreads = kTileRows / 16 * 32;

template <typename T, int D>
__global__ void __launch_bounds__(kThreads, 1) prefill_kernel(const Params p) {
  using R = BlockRing<D>;
  extern __shared__ __align__(128) uint8_t ring[];
  int* starts = reinterpret_cast<int*>(ring + R::kBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  depend();
  sum_items(starts, p.sequences, [&](int sequence) { return tiles_of(p, sequence); });
  release_successor();
  const int items = starts[p.sequences];
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Tile tile = find_tile<kBlockTokens>(p, starts, index);
    const int32_t* table = p.block_tables + int64_t(tile.sequence) * p.table_stride;
    const int warp_row = tile.first_row + warp * 16;
    // A row sees keys in (position - window, position]; of the warp's rows the first sees least far, the last back least.
    auto position_of = [&](int row) { return tile.first_position + row / p.group; };
    auto oldest_of = [&](int row) { return p.window > 0 ? position_of(row) - p.window + 1 : 0; };
    int64_t token[2];
    int head[2], newest[2], oldest[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_row + lane / 4 + r * 8;
      token[r] = row < tile.rows ? tile.first_token + row / p.group : -1;
      head[r] = tile.kv_head * p.group + row % p.group;
      newest[r] = position_of(row);
      oldest[r] = oldest_of(row);
    }
    Rows<T, D> rows([&](int r) -> const T* {
      return token[r] < 0 ? nullptr : static_cast<const T*>(p.q) + token[r] * p.q_stride + head[r] * D;
    });
    walk_blocks<D>(
        ring, p.keys, p.values, tile.first_keys, tile.last_keys,
        [&](int block) { return (int64_t(table[block]) * p.kv_heads + tile.kv_head) * R::kHalfBytes; },
        [&](int block, uint32_t at) {
          const int first_key = block * kBlockTokens, last_key = first_key + kBlockTokens - 1;
          if (warp_row >= tile.rows || first_key > position_of(warp_row + 15) || last_key < oldest_of(warp_row)) return;
          const bool masked = last_key > position_of(warp_row) || first_key < oldest_of(warp_row + 15);
          rows.take_block(at, p.scale, masked,
                          [&](int r, int key) { return first_key + key <= newest[r] && first_key + key >= oldest[r]; });
        });
    rows.finish();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (token[r] < 0) continue;
      const float inverse = 1.f / rows.sum[r];
      T* to = static_cast<T*>(p.out) + token[r] * p.out_stride + head[r] * D + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
        *reinterpret_cast<uint32_t*>(to + i * 8) = pack2<T>(rows.out[i][r * 2] * inverse, rows.out[i][r * 2 + 1] * inverse);
      }
    }
  }
}

template <typename T, int D>
void go(cudaStream_t stream, const Device& device, const Params& p) {
  static Occupancy occupancy;
  const size_t bytes = BlockRing<D>::kBytes + size_t(p.sequences + 1024) / 1024 * 4096;
  const int blocks = occupancy.of(prefill_kernel<T, D>, device, kThreads, bytes);
  launch(stream, prefill_kernel<T, D>, dim3(unsigned(device.multiprocessors * blocks)), kThreads, bytes, p);
}

template <typename T>
void by_head(cudaStream_t stream, const Device& device, const Params& p, int head_dim) {
  if (head_dim == 64) return go<T, 64>(stream, device, p);
  if (head_dim == 128) return go<T, 128>(stream, device, p);
  throw InvalidArgument(concat("heads of ", head_dim, " elements have no CUDA kernel; 64 and 128 have"));
}

}  // namespace

void attend_prefill(cudaStream_t stream, const Device& device, Tensor out, Tensor qkv, const AttentionShape& shape,
                    KvLayer cache, const Batch& batch) {
  const Params p = params_of(out, qkv, shape, cache, batch);
  if (qkv.dtype == DType::bf16) return by_head<__nv_bfloat16>(stream, device, p, shape.head_dim);
  by_head<__half>(stream, device, p, shape.head_dim);
}

}  // namespace oarlock::cuda::portable
