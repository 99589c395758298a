// Attention of sequences that bring several tokens: whole prompts and pieces of them, over everything cached before.
// The rows of a tile are (token, query head of the group) pairs of one sequence and KV head, 64 for each of two warpgroups; a
// producer warp brings 128 keys and values at a time. A warpgroup multiplies the next keys while it exponentiates, and its
// neighbour fills the matrix units meanwhile. Tiles of keys start at multiples of 128 whatever the chunk, and tiles that a
// row does not see change nothing in it, so a row's result does not depend on how its prompt was cut.
#include "cuda/attention_prefill.cuh"
#include "cuda/element.cuh"
#include "cuda/elementwise.h"
#include "cuda/ptx.cuh"
#include "cuda/wgmma.cuh"

namespace oarlock::cuda {
namespace {

using namespace prefill;

constexpr int kTileKeys = 128, kRingStages = 2, kPrefillThreads = 384;

template <int D>
struct PrefillShared {
  static constexpr int kColumnBytes = kTileKeys * 128;  // 64 columns of a tile of keys
  static constexpr int kTileBytes = D / 64 * kColumnBytes;
  static constexpr int kQueryBytes = D / 64 * 64 * 128;  // of one warpgroup
  static size_t bytes(int sequences) {
    return 1024 + 2 * kQueryBytes + kRingStages * 2 * kTileBytes + size_t(sequences + 1) * 4;
  }
};

template <int registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

template <typename T, int D>
__device__ __forceinline__ void produce(const Params& p, const int* starts, int items, uint8_t* ring, uint64_t* key_full,
                                        uint64_t* key_empty, uint64_t* value_full, uint64_t* value_empty) {
  using S = PrefillShared<D>;
  int stage = 0, phase = 1;
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Tile tile = find_tile<kTileKeys>(p, starts, index);
    const int32_t* table = p.block_tables + int64_t(tile.sequence) * p.table_stride;
    const int last_block = tile.last_position / kBlockTokens;
    for (int keys = tile.first_keys; keys < tile.last_keys; ++keys) {
      // A block that nobody sees is replaced by the last one: its weights are 0, but it must hold numbers.
      const int second = keys * 2 + 1 < last_block ? keys * 2 + 1 : last_block;
      const int64_t at[2] = {(int64_t(table[keys * 2]) * p.kv_heads + tile.kv_head) * (D / 64) * kGroupBytes,
                             (int64_t(table[second]) * p.kv_heads + tile.kv_head) * (D / 64) * kGroupBytes};
      auto bring = [&](uint8_t* to, const void* from, uint64_t* full) {
        barrier_expect(full, S::kTileBytes);
#pragma unroll
        for (int block = 0; block < 2; ++block) {
#pragma unroll
          for (int column = 0; column < D / 64; ++column) {
            bulk_load(to + column * S::kColumnBytes + block * kGroupBytes,
                      static_cast<const uint8_t*>(from) + at[block] + column * kGroupBytes, kGroupBytes, full);
          }
        }
      };
      if (threadIdx.x % 32 == 0) {
        barrier_wait(&key_empty[stage], phase);
        bring(ring + stage * 2 * S::kTileBytes, p.keys, &key_full[stage]);
        barrier_wait(&value_empty[stage], phase);
        bring(ring + (stage * 2 + 1) * S::kTileBytes, p.values, &value_full[stage]);
      }
      if (++stage == kRingStages) stage = 0, phase ^= 1;
    }
  }
}

template <typename T, int D>
__device__ __forceinline__ void consume(const Params& p, const int* starts, int items, uint8_t* queries, uint8_t* ring,
                                        uint64_t* key_full, uint64_t* key_empty, uint64_t* value_full, uint64_t* value_empty,
                                        int warpgroup) {
  using S = PrefillShared<D>;
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  const uint64_t query_descriptor = wgmma_descriptor(shared_address(queries));
  int stage = 0, phase = 0;
  auto advance = [](int& stage, int& phase) {
    if (++stage == kRingStages) stage = 0, phase ^= 1;
  };
  auto meet = [&] {  // the warpgroup's barrier
    if (warpgroup == 0) {
      named_barrier<1>(128);
    } else {
      named_barrier<2>(128);
    }
  };
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Tile tile = find_tile<kTileKeys>(p, starts, index);
    const int first_row = tile.first_row + warpgroup * 64;
    meet();  // nobody multiplies with the queries of the tile before any more
    for (int i = thread; i < 64 * D / 8; i += 128) {
      const int row = first_row + i / (D / 8), column = i % (D / 8) * 8;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (row < tile.rows) {
        v = *reinterpret_cast<const uint4*>(static_cast<const T*>(p.q) + (tile.first_token + row / p.group) * p.q_stride +
                                            (tile.kv_head * p.group + row % p.group) * D + column);
      }
      *reinterpret_cast<uint4*>(queries + column / 64 * (64 * 128) + swizzled(uint32_t(i / (D / 8)), column % 64 * 2)) = v;
    }
    fence_async();
    meet();

    // This thread's rows are row[0] and row[1] = row[0] + 8; a row sees keys in (position - window, position].
    int newest[2], oldest[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      newest[r] = tile.first_position + (first_row + warp * 16 + lane / 4 + r * 8) / p.group;
      oldest[r] = p.window > 0 ? newest[r] - p.window + 1 : 0;
    }
    const int lowest_newest = tile.first_position + first_row / p.group;
    const int highest_oldest = p.window > 0 ? tile.first_position + (first_row + 63) / p.group - p.window + 1 : 0;

    float score[kTileKeys / 2], out[D / 2], maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, shrink[2];
    uint32_t weights[kTileKeys / 16][4];

    auto multiply_keys = [&](int at) {
      const uint64_t keys = wgmma_descriptor(shared_address(ring + at * 2 * S::kTileBytes));
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        Wgmma<T, kTileKeys>::ss(score, query_descriptor + step / 4 * (64 * 128 / 16) + step % 4 * 2,
                                keys + step / 4 * (S::kColumnBytes / 16) + step % 4 * 2, step > 0);
      }
      wgmma_commit();
    };
    auto multiply_values = [&](int at, bool more) {
      const uint64_t values = wgmma_descriptor(shared_address(ring + (at * 2 + 1) * S::kTileBytes), S::kColumnBytes);
#pragma unroll
      for (int step = 0; step < kTileKeys / 16; ++step) {
        Wgmma<T, D>::template rs<1>(out, weights[step], values + step * (16 * 128 / 16), more || step > 0);
      }
      wgmma_commit();
    };
    auto exponentiate = [&](int keys) {
      if (keys * kTileKeys + kTileKeys - 1 > lowest_newest || keys * kTileKeys < highest_oldest) {
#pragma unroll
        for (int i = 0; i < kTileKeys / 2; ++i) {
          const int key = keys * kTileKeys + i / 4 * 8 + lane % 4 * 2 + i % 2, r = i / 2 % 2;
          if (key > newest[r] || key < oldest[r]) score[i] = -INFINITY;
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float top = -INFINITY;
#pragma unroll
        for (int i = 0; i < kTileKeys / 8; ++i) top = fmaxf(top, fmaxf(score[i * 4 + r * 2], score[i * 4 + r * 2 + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * p.scale;
        const float next = fmaxf(maximum[r], top), base = next == -INFINITY ? 0.f : next;
        shrink[r] = exp2f(maximum[r] - base);
        maximum[r] = next;
        float added = 0;
#pragma unroll
        for (int i = 0; i < kTileKeys / 8; ++i) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& s = score[i * 4 + r * 2 + j];
            s = exp2f(s * p.scale - base);
            added += s;
          }
        }
        sum[r] = sum[r] * shrink[r] + added;
      }
    };
    auto pack_weights = [&] {
#pragma unroll
      for (int i = 0; i < kTileKeys / 16; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) weights[i][j] = pack2<T>(score[i * 8 + j * 2], score[i * 8 + j * 2 + 1]);
      }
    };

    barrier_wait(&key_full[stage], phase);
    wgmma_fence();
    multiply_keys(stage);
    wgmma_wait<0>();
    if (lane == 0) barrier_arrive(&key_empty[stage]);
    exponentiate(tile.first_keys);
    pack_weights();
    int value_stage = stage, value_phase = phase;
    advance(stage, phase);
    for (int keys = tile.first_keys + 1; keys < tile.last_keys; ++keys) {
      barrier_wait(&key_full[stage], phase);
      wgmma_fence();
      multiply_keys(stage);
      barrier_wait(&value_full[value_stage], value_phase);
      multiply_values(value_stage, keys > tile.first_keys + 1);
      wgmma_wait<1>();
      if (lane == 0) barrier_arrive(&key_empty[stage]);
      exponentiate(keys);
      wgmma_wait<0>();
      if (lane == 0) barrier_arrive(&value_empty[value_stage]);
#pragma unroll
      for (int i = 0; i < D / 2; ++i) out[i] *= shrink[i / 2 % 2];
      pack_weights();
      value_stage = stage, value_phase = phase;
      advance(stage, phase);
    }
    barrier_wait(&value_full[value_stage], value_phase);
    wgmma_fence();
    multiply_values(value_stage, tile.last_keys > tile.first_keys + 1);
    wgmma_wait<0>();
    if (lane == 0) barrier_arrive(&value_empty[value_stage]);

#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = sum[r];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const int row = first_row + warp * 16 + lane / 4 + r * 8;
      if (row >= tile.rows) continue;
      const float inverse = 1.f / total;
      T* to = static_cast<T*>(p.out) + (tile.first_token + row / p.group) * p.out_stride +
              (tile.kv_head * p.group + row % p.group) * D + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
        *reinterpret_cast<uint32_t*>(to + i * 8) = pack2<T>(out[i * 4 + r * 2] * inverse, out[i * 4 + r * 2 + 1] * inverse);
      }
    }
  }
}

template <typename T, int D>
__global__ void __launch_bounds__(kPrefillThreads, 1) prefill_kernel(const Params p) {
  using S = PrefillShared<D>;
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t key_full[kRingStages], key_empty[kRingStages], value_full[kRingStages], value_empty[kRingStages];
  uint8_t* queries = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared) + 1023) & ~uintptr_t(1023));
  uint8_t* ring = queries + 2 * S::kQueryBytes;
  int* starts = reinterpret_cast<int*>(ring + kRingStages * 2 * S::kTileBytes);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kRingStages; ++s) {
      barrier_init(&key_full[s], 1);
      barrier_init(&value_full[s], 1);
      barrier_init(&key_empty[s], 8);
      barrier_init(&value_empty[s], 8);
    }
    barrier_init_fence();
  }
  sum_items(starts, p.sequences, [&](int sequence) { return tiles_of(p, sequence); });
  release_successor();
  depend();
  const int warpgroup = uniform(threadIdx.x / 128);
  const int items = uniform(starts[p.sequences]);
  if (warpgroup == 2) {
    give_registers<24>();
    if (uniform(threadIdx.x / 32) == 8) produce<T, D>(p, starts, items, ring, key_full, key_empty, value_full, value_empty);
  } else {
    take_registers<240>();
    consume<T, D>(p, starts, items, queries + warpgroup * S::kQueryBytes, ring, key_full, key_empty, value_full, value_empty,
                  warpgroup);
  }
}

template <typename T, int D>
void go(cudaStream_t stream, const Device& device, const Params& p) {
  const size_t bytes = PrefillShared<D>::bytes(p.sequences);
  require(bytes <= device.shared_per_block, "a step of ", p.sequences, " sequences is more than a prefill takes");
  static const bool allowed = (allow_shared(prefill_kernel<T, D>, device.shared_per_block - 1024), true);
  (void)allowed;
  launch(stream, prefill_kernel<T, D>, dim3(unsigned(device.multiprocessors)), kPrefillThreads, bytes, p);
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

}  // namespace oarlock::cuda
