// Products for 1 to 32 rows as a walk over the weights. Decoding reads every weight once a step, so this kernel is a copy loop
// that happens to multiply: one warp keeps tensor copies of weights and of the matching columns of x in flight through a ring
// in shared memory, and two warpgroups take turns to multiply them, the weights as the 64-row operand of wgmma and the rows of
// x as its columns. The weights do not depend on the kernels before this one, so the ring fills while those still run.
//
// Every multiprocessor has an equal share of a weight's rows and sums them over all columns itself, in an order that depends
// on n and k alone: nothing is added up between multiprocessors, and a row's result depends on that row.
#include <algorithm>
#include <type_traits>

#include "base/error.h"
#include "cuda/element.cuh"
#include "cuda/ptx.cuh"
#include "cuda/ranks/wait.cuh"
#include "cuda/stream.h"
#include "cuda/wgmma.cuh"

namespace oarlock::cuda {
namespace {

constexpr int kBoxColumns = 64;  // 128 bytes, the swizzle's row
constexpr int kMostTile = 128;   // rows of a weight that are multiplied at a time: two 64-row operands
constexpr int kMostColumns = 4;  // boxes side by side in a stage, when the tile is low
constexpr int kGroups = 2;       // warpgroups that multiply; with one, arithmetic is no faster than the memory
constexpr int kThreads = kGroups * 128 + 32;
constexpr int kMostStages = 12;
constexpr int kPace = 900;  // cycles for kMostTile rows of a box: what each multiprocessor may have of the memory, and no more
constexpr int kRingBytes = 214 << 10;  // with the sums; a smaller ring, so that two kernels share a multiprocessor, is slower

struct StreamParams {
  void* out;
  const float* bias;
  int64_t out_stride;
  int rows, n;
  int block_rows, tile_rows;  // block b has output rows [b * block_rows, (b + 1) * block_rows), tile_rows at a time
  int depth;                  // boxes of 64 columns of the whole row, whole turns of the groups
  int stages;                 // of the ring, a multiple of kGroups
  bool float_out, gate;
  int pace;         // cycles from one early request for weights to the next
  Channel channel;  // where the result is shared with the other ranks
};

template <int N, int kColumns>
struct Stage {
  static constexpr int kWeightBytes = kMostTile * 128, kRowBytes = kColumns * N * 128, kBytes = kWeightBytes + kRowBytes;
  static constexpr int kSumBytes = 128 * N * 4;  // what the second group leaves for the first
};

// A place in the ring and the parity of the turn that it is in.
struct Cursor {
  int stage, turn;
  __device__ void advance(int count, int stages) {
    if ((stage += count) >= stages) stage -= stages, turn ^= 1;
  }
};

// Calls put(row of x, row of the weight, value) for what a thread has of the rows [first_row, end_row) of a tile; acc[i] has
// those from first_row + 64 i.
template <int N, bool high, typename Put>
__device__ __forceinline__ void each_value(const StreamParams& p, const float (&acc)[4][N / 2], int first_row, int end_row,
                                           int thread, Put&& put) {
  const int lane = thread % 32;
#pragma unroll
  for (int half = 0; half < (high ? 2 : 1); ++half) {
    const int row = first_row + half * 64 + thread / 32 * 16 + lane / 4;
    const bool lower_in = row < end_row, upper_in = row + 8 < end_row;
    const float lower_bias = p.bias && lower_in ? p.bias[row] : 0.f, upper_bias = p.bias && upper_in ? p.bias[row + 8] : 0.f;
#pragma unroll
    for (int j = 0; j < N / 4; ++j) {
      const int x_row = j / 2 * 8 + (lane % 4) * 2 + j % 2;
      if (x_row >= p.rows) continue;
      if (lower_in) put(x_row, row, acc[half][j / 2 * 4 + j % 2] + lower_bias);
      if (upper_in) put(x_row, row + 8, acc[half][j / 2 * 4 + 2 + j % 2] + upper_bias);
    }
  }
}

// The same rows, gated: a thread has a gate and, eight rows on, what it is for.
template <typename T, int N, bool high>
__device__ __forceinline__ void write_gated(const StreamParams& p, const float (&acc)[4][N / 2], int first_row, int end_row,
                                            int thread) {
  const int lane = thread % 32;
#pragma unroll
  for (int half = 0; half < (high ? 2 : 1); ++half) {
    const int base = first_row + half * 64 + thread / 32 * 16;
    if (base >= end_row) continue;
    T* out = static_cast<T*>(p.out) + base / 2 + lane / 4;
#pragma unroll
    for (int j = 0; j < N / 4; ++j) {
      const int x_row = j / 2 * 8 + (lane % 4) * 2 + j % 2;
      const float gate = acc[half][j / 2 * 4 + j % 2], up = acc[half][j / 2 * 4 + 2 + j % 2];
      if (x_row < p.rows) out[x_row * p.out_stride] = from_float<T>(silu(gate) * up);
    }
  }
}

// Each way to write has code of its own: a kernel's instructions come from memory again in every step.
template <typename T, int N, bool high, bool shares>
__device__ __forceinline__ void write_out(const StreamParams& p, uint32_t round, const float (&acc)[4][N / 2], int first_row,
                                          int end_row, int thread) {
  if constexpr (shares) {
    each_value<N, high>(p, acc, first_row, end_row, thread, [&](int x_row, int row, float x) {
      const int64_t at = x_row * p.out_stride + row;
      static_cast<float*>(p.out)[at] = x;
      send_share(p.channel, round, at, x);
    });
  } else if (p.gate) {
    write_gated<T, N, high>(p, acc, first_row, end_row, thread);
  } else if (p.float_out) {
    each_value<N, high>(p, acc, first_row, end_row, thread,
                        [&](int x_row, int row, float x) { static_cast<float*>(p.out)[x_row * p.out_stride + row] = x; });
  } else {
    each_value<N, high>(p, acc, first_row, end_row, thread, [&](int x_row, int row, float x) {
      static_cast<T*>(p.out)[x_row * p.out_stride + row] = from_float<T>(x);
    });
  }
}

// kColumns: boxes side by side in a stage, so that one holds up to 128 rows of boxes; when it is one, the tile may have more
// than 64 rows and be two operands.
template <typename T, int N, int kColumns, bool shares>
__global__ void __launch_bounds__(kThreads, 1)
    stream_kernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap rows, const StreamParams p) {
  using S = Stage<N, kColumns>;
  extern __shared__ uint8_t shared[];
  __shared__ uint64_t full[kMostStages], empty[kMostStages], ready;
  uint8_t* ring = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared) + 1023) & ~uintptr_t(1023));
  float4* sums = reinterpret_cast<float4*>(ring + p.stages * S::kBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int begin = blockIdx.x * p.block_rows, end = min(begin + p.block_rows, p.n);

  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int s = 0; s < p.stages; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], 4);
    barrier_init(&ready, 1);
    barrier_init_fence();
  }
  __syncthreads();
  release_successor();

  if (warp == kGroups * 4) {
    if (lane != 0) return;
    const uint64_t once = policy_evict_first();
    auto load_weights = [&](int row, int depth, int stage) {
      barrier_expect(&full[stage], kColumns * (p.tile_rows + N) * 128);
      tensor_load(ring + stage * S::kBytes, &weights, depth, row, &full[stage], once);
    };
    auto load_rows = [&](int depth, int stage) {
      tensor_load(ring + stage * S::kBytes + S::kWeightBytes, &rows, depth, 0, &full[stage]);
    };
    // The first turn of the ring: weights now, x once it is there.
    const int most = min(p.stages, p.depth / kColumns);
    const Pace pace(p.pace, &ready);
    int early = 0;
    do {
      load_weights(begin, early * kColumns, early);
      ++early;
    } while (early < most && pace.wait(early));
    depend();
#pragma unroll 1
    for (int s = 0; s < early; ++s) load_rows(s * kColumns, s);
    Cursor at{0, 1};
    at.advance(early, p.stages);
    for (int row = begin; row < end; row += p.tile_rows) {
#pragma unroll 1
      for (int depth = row == begin ? early * kColumns : 0; depth < p.depth; depth += kColumns) {
        barrier_wait(&empty[at.stage], at.turn);
        load_weights(row, depth, at.stage);
        load_rows(depth, at.stage);
        at.advance(1, p.stages);
      }
    }
    return;
  }

  depend();
  if (threadIdx.x == 0) barrier_arrive(&ready);
  const uint32_t round = shares ? round_of(p.channel) : 0;
  const int group = __shfl_sync(~0u, int(threadIdx.x / 128), 0), thread = threadIdx.x % 128;
  constexpr bool kHigh = kColumns == 1;
  // Four sums, so that a product need not wait for the one before: by half of the tile and parity of the step, by box and
  // parity, or by box.
  float acc[4][N / 2];
  Cursor at{group, 0};
  for (int first_row = begin; first_row < end; first_row += p.tile_rows) {
    int read = -1;  // the stage that the products in flight read, given back when the next stage's have been issued
#pragma unroll 1
    for (int depth = 0; depth < p.depth; depth += kGroups * kColumns) {
      barrier_wait(&full[at.stage], at.turn);
      const uint32_t address = shared_address(ring + at.stage * S::kBytes);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
          // A low tile's operand reads on past its end, into rows of the result that nobody looks at.
          const uint64_t w = wgmma_descriptor(address + column * p.tile_rows * 128) + step * 2,
                         x = wgmma_descriptor(address + S::kWeightBytes + column * N * 128) + step * 2;
          if constexpr (kHigh) {
            Wgmma<T, N>::ss(acc[step % 2], w, x, depth > 0 || step > 1);
            Wgmma<T, N>::ss(acc[2 + step % 2], w + 64 * 128 / 16, x, depth > 0 || step > 1);
          } else if constexpr (kColumns == 2) {
            Wgmma<T, N>::ss(acc[column * 2 + step % 2], w, x, depth > 0 || step > 1);
          } else {
            Wgmma<T, N>::ss(acc[column], w, x, depth > 0 || step > 0);
          }
        }
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (lane == 0 && read >= 0) barrier_arrive(&empty[read]);
      read = at.stage;
      at.advance(kGroups, p.stages);
    }
    wgmma_wait<0>();
    if (lane == 0) barrier_arrive(&empty[read]);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      if constexpr (kHigh) {
        acc[0][i] += acc[1][i];
        acc[1][i] = acc[2][i] + acc[3][i];
      } else {
        acc[0][i] = (acc[0][i] + acc[1][i]) + (acc[2][i] + acc[3][i]);
      }
    }
    constexpr int kQuads = (kHigh ? N : N / 2) / 4;
    if (group == 1) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        const float* v = &acc[i / (N / 8)][i % (N / 8) * 4];
        sums[i * 128 + thread] = make_float4(v[0], v[1], v[2], v[3]);
      }
    }
    named_barrier<1>(kGroups * 128);
    if (group == 0) {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        const float4 v = sums[i * 128 + thread];
        float* to = &acc[i / (N / 8)][i % (N / 8) * 4];
        to[0] += v.x, to[1] += v.y, to[2] += v.z, to[3] += v.w;
      }
    }
    named_barrier<1>(kGroups * 128);  // the sums are free again
    if (group == 0) write_out<T, N, kHigh, shares>(p, round, acc, first_row, min(first_row + p.tile_rows, end), thread);
  }
}

template <typename T, int N, int kColumns, bool shares>
void go(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor x, StreamParams p) {
  using S = Stage<N, kColumns>;
  static const bool allowed = (allow_shared(stream_kernel<T, N, kColumns, shares>, device.shared_per_block - 1024), true);
  (void)allowed;
  // Whole turns of the groups: what lies beyond the last column reads as zero.
  constexpr int kTurn = kGroups * kColumns;
  p.depth = int((weight.k / kBoxColumns + kTurn - 1) / kTurn) * kTurn;
  constexpr int kRoom = (kRingBytes - S::kSumBytes) / S::kBytes / kGroups * kGroups;
  static_assert(kRoom >= 2 * kGroups, "a group gives a stage back when it has the next one");
  p.stages = std::min({kMostStages, kRoom, p.depth / kColumns});
  p.pace = kPace * kColumns * p.tile_rows / kMostTile;
  const unsigned blocks = unsigned((weight.n + p.block_rows - 1) / p.block_rows);
  // A low tile's operand at the end of the last stage reads the rows and sums behind it, and 8 KB at most.
  const size_t shared = 1024 + size_t(p.stages) * S::kBytes + std::max(S::kSumBytes, 8192);
  launch(stream, stream_kernel<T, N, kColumns, shares>, dim3(blocks), kThreads, shared,
         make_tensor_map(weight.data, weight.dtype, weight.n, weight.k, weight.k, p.tile_rows, kColumns),
         make_tensor_map(x.data, x.dtype, x.rows, x.cols, x.stride, N, kColumns), p);
}

template <typename T, int N, bool shares>
void by_tile(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor x, const StreamParams& p) {
  if (p.tile_rows > 64) return go<T, N, 1, shares>(stream, device, weight, x, p);
  if (p.tile_rows > 32) return go<T, N, 2, shares>(stream, device, weight, x, p);
  return go<T, N, kMostColumns, shares>(stream, device, weight, x, p);
}

template <typename T, bool shares>
void by_rows(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor x, const StreamParams& p) {
  if (x.rows <= 8) return by_tile<T, 8, shares>(stream, device, weight, x, p);
  if (x.rows <= 16) return by_tile<T, 16, shares>(stream, device, weight, x, p);
  return by_tile<T, 32, shares>(stream, device, weight, x, p);
}

}  // namespace

namespace {

void run(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x, const float* bias,
         After after, const Channel* channel) {
  require(x.rows >= 1 && x.rows <= kStreamMaxRows, "a streamed product takes 1 to ", kStreamMaxRows, " rows, not ", x.rows);
  require(streams(weight), "a streamed product takes a multiple of ", kBoxColumns, " columns, not ", weight.k);
  StreamParams p = {};
  p.out = out.data;
  p.out_stride = out.stride;
  p.bias = bias;
  p.rows = int(x.rows);
  p.n = int(weight.n);
  p.float_out = out.dtype == DType::f32;
  p.gate = after == After::gate;
  if (channel != nullptr) p.channel = *channel;
  // Rows of a block as a number of equal tiles: the fewest rows to read, and few tiles, since x is read once for each. The
  // number of rows of x must play no part, as the tile decides the order of the sums. Gates and ups alternate by eight rows,
  // and a thread has rows eight apart, so these go by sixteen. A low tile leaves half of the operand unused.
  const int unit = p.gate ? 16 : 8;
  const int64_t least = (weight.n + device.multiprocessors - 1) / device.multiprocessors;
  const int lowest = least > kMostTile ? kMostTile / 2 : unit;
  double best = 0;
  for (int rows = lowest; rows <= kMostTile; rows += unit) {
    const int64_t block_rows = (least + rows - 1) / rows * rows;
    const double cost = double(block_rows) * (1 + 8.0 / rows);
    if (rows == lowest || cost < best) {
      best = cost;
      p.tile_rows = rows;
      p.block_rows = int(block_rows);
    }
  }
  auto go = [&](auto shares) {
    constexpr bool kShares = decltype(shares)::value;
    if (x.dtype == DType::bf16) return by_rows<__nv_bfloat16, kShares>(stream, device, weight, x, p);
    by_rows<__half, kShares>(stream, device, weight, x, p);
  };
  channel != nullptr ? go(std::true_type()) : go(std::false_type());
}

}  // namespace

void stream_product(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                    const float* bias, After after) {
  run(stream, device, weight, out, x, bias, after, nullptr);
}

void stream_share(cudaStream_t stream, const Device& device, const StreamWeight& weight, Tensor out, Tensor x,
                  const Channel& channel) {
  require(out.dtype == DType::f32 && out.stride == out.cols, "ranks share contiguous rows of float32");
  require(out.rows * out.cols * 4 <= channel.part_bytes, "ranks can't share ", out.rows, " rows at once");
  run(stream, device, weight, out, x, nullptr, After::store, &channel);
}

}  // namespace oarlock::cuda
