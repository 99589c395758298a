// A row is one block's: it writes its rank's share to every peer, empties what the round before used, and looks at its own
// memory until the peers' shares are there. The way over NVLink is thus taken once, without a flag, a fence or an answer. All
// ranks add up in the same order and hold the same bits.
//
// Blocks wait for their like on other devices alone. Blocks start in order, so the first that are unfinished run everywhere,
// and any number of rows comes to an end.
#include "base/error.h"
#include "cuda/device.h"
#include "cuda/element.cuh"
#include "cuda/ptx.cuh"
#include "cuda/ranks/sums.h"
#include "cuda/ranks/wait.cuh"

namespace oarlock::cuda {
namespace {

constexpr int kMostThreads = 1024;  // of eight columns each

// Eight values as they travel: one or two pieces of sixteen bytes.
constexpr int pieces_of(Travel travel) { return travel == Travel::packed ? 1 : 2; }

// A word has two of the values as 15 bits, zero being 2^14 so that no word is kEmpty, and two bits of their exponent.
__device__ __forceinline__ uint4 pack(const float (&v)[8]) {
  uint32_t top = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) top = max(top, __float_as_uint(v[j]) & 0x7fffffffu);
  const uint32_t exponent = max(top >> 23, 14u);
  const float scale = __uint_as_float((267u - min(exponent, 254u)) << 23);  // 2^14 over the power of two above all values
  uint32_t words[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int low = max(min(__float2int_rn(v[2 * j] * scale), 16383), -16383) + 16384;
    const int high = max(min(__float2int_rn(v[2 * j + 1] * scale), 16383), -16383) + 16384;
    words[j] = uint32_t(low) | uint32_t(high) << 15 | (exponent >> (2 * j) & 3u) << 30;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ void unpack(float (&v)[8], uint4 piece) {
  const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
  uint32_t exponent = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) exponent |= words[j] >> 30 << (2 * j);
  // What was no number, or infinite, made all eight so.
  const float unit = exponent == 255 ? __uint_as_float(0x7fffffffu) : __uint_as_float((exponent - 13u) << 23);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    v[2 * j] = float(int(words[j] & 0x7fffu) - 16384) * unit;
    v[2 * j + 1] = float(int(words[j] >> 15 & 0x7fffu) - 16384) * unit;
  }
}

template <Travel travel>
__device__ __forceinline__ void add_pieces(float (&to)[8], const uint4 (&from)[pieces_of(travel)]) {
  float v[8];
  if constexpr (travel == Travel::packed) {
    unpack(v, from[0]);
  } else {
    load8(v, reinterpret_cast<const float*>(from));
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) to[j] += v[j];
}

// kNorm: as sum_add_norm; otherwise `residual` alone becomes the sum, and `delta` is where it lies already.
template <typename T, Travel travel, int kPeers, bool kNorm>
__global__ void __launch_bounds__(kMostThreads)
    sum_kernel(T* out, int64_t out_stride, float* residual, int64_t stride, const float* delta, const float* weight,
               float epsilon, int cols, const __grid_constant__ Channel channel) {
  constexpr int kPieces = pieces_of(travel);
  __shared__ float sums[kMostThreads / 32];
  release_successor();
  const int c = int(threadIdx.x) * 8, peers = channel.world - 1, rank = channel.rank;
  const bool active = c < cols;
  float w[8] = {};
  if (kNorm && active) load8(w, weight + c);
  depend();
  const bool counts = blockIdx.x == 0 && threadIdx.x == 0;
  const int64_t begin = counts ? clock64() : 0;
  residual += blockIdx.x * stride + c;
  const int64_t at = (int64_t(blockIdx.x) * cols + c) / 8 * kPieces;  // in pieces
  auto places = [&](int p, uint32_t round) { return channel.from(p + int(p >= rank), round); };

  // What is read first is read at once. Of one peer all three places are looked at before it is known which is this round's.
  constexpr bool kGuess = travel == Travel::sent && kPeers == 1;
  float mine[8] = {}, v[8] = {};
  uint4 guess[3][kPieces];
  if (active) {
    load8(mine, delta + int64_t(blockIdx.x) * cols + c);
    if (kNorm) load8(v, residual);
    if constexpr (kGuess) {
#pragma unroll
      for (int place = 0; place < 3; ++place) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          guess[place][i] = look(reinterpret_cast<const uint4*>(places(0, uint32_t(place))) + at + i);
        }
      }
    }
  }
  const uint32_t round = round_of(channel), used = used_before(channel, round);
  // What the round before used; there is time for it while one waits.
  bool emptied = false;
  auto empty = [&] {
    emptied = true;
#pragma unroll 1
    for (int p = 0; p < peers; ++p) {
      auto* place = reinterpret_cast<uint4*>(places(p, round + 2));
#pragma unroll 1
      for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < used; i += gridDim.x * blockDim.x) {
        place[i] = make_uint4(kEmpty, kEmpty, kEmpty, kEmpty);
      }
    }
  };
  if (active) {
#pragma unroll
    for (int j = 0; j < 8; ++j) mine[j] += 0.f;  // no -0 travels
    uint4 pieces[kPieces];
    if constexpr (travel == Travel::packed) {
      pieces[0] = pack(mine);
      unpack(mine, pieces[0]);  // as the others see it
    } else {
      store8(reinterpret_cast<float*>(pieces), mine);
    }
    if constexpr (travel != Travel::sent) {
#pragma unroll
      for (int p = 0; p < kPeers; ++p) {
        if (p >= peers) break;
        uint4* to = reinterpret_cast<uint4*>(channel.at(p + int(p >= rank), round)) + at;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) send(to + i, pieces[i]);
      }
    }
  }
  // The end of a round waits for an answer: while what has been sent is on its way, or last.
  const uint32_t uses = gridDim.x * uint32_t(cols) / 8 * kPieces;
  if constexpr (travel != Travel::sent) {
    __syncthreads();
    if (threadIdx.x == 0) end_round(channel, round, gridDim.x, uses);
  }

  if (active) {
    uint4 theirs[kPeers][kPieces];
    Wait wait(channel);
    bool whole = kGuess;
    if constexpr (kGuess) {
      const uint32_t place = round % 3;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        theirs[0][i] = place == 0 ? guess[0][i] : place == 1 ? guess[1][i] : guess[2][i];
        whole &= has_come(theirs[0][i]);
      }
    }
    if (!whole) empty();
    while (!whole) {
#pragma unroll
      for (int p = 0; p < kPeers; ++p) {
        if (p >= peers) break;
        const auto* from = reinterpret_cast<const uint4*>(places(p, round)) + at;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) theirs[p][i] = look(from + i);
      }
      int missing = -1;
#pragma unroll
      for (int p = 0; p < kPeers; ++p) {
        if (p >= peers) break;
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
          if (!has_come(theirs[p][i])) missing = p + int(p >= rank);
      }
      whole = missing < 0 || wait.is_over(missing);
    }
    float total[8] = {};
#pragma unroll
    for (int p = 0; p <= kPeers; ++p) {
      if (p == rank) {
#pragma unroll
        for (int j = 0; j < 8; ++j) total[j] += mine[j];
      }
      if (p < kPeers && p < peers) add_pieces<travel>(total, theirs[p < kPeers ? p : 0]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] += total[j];
    store8(residual, v);
  }
  if (counts)
    atomicAdd(reinterpret_cast<unsigned long long*>(channel.cycles), static_cast<unsigned long long>(clock64() - begin));

  float sum = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) sum += v[j] * v[j];
  if (kNorm) sum = warp_sum(sum);
  if (kNorm && threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (kNorm) sum = warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0.f);
  if (kNorm && active) {
    const float scale = rsqrtf(sum / float(cols) + epsilon);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] *= scale * w[j];
    store8(out + blockIdx.x * out_stride + c, v);
  }
  if (!emptied) empty();
  if (travel == Travel::sent && threadIdx.x == 0) end_round(channel, round, gridDim.x, uses);
}

__global__ void empty_kernel(uint32_t* words, int64_t count) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    words[i] = kEmpty;
  }
}

template <typename T, Travel travel, bool kNorm>
void go(cudaStream_t stream, const Channel& channel, Tensor out, Tensor residual, Tensor delta, const float* weight,
        float epsilon) {
  require(delta.dtype == DType::f32 && residual.dtype == DType::f32 && delta.stride == delta.cols && delta.cols % 8 == 0 &&
              delta.cols <= 8 * kMostThreads,
          "ranks sum contiguous rows of float32 with a multiple of 8 up to ", 8 * kMostThreads, " columns");
  require(delta.rows * delta.cols * 2 * pieces_of(travel) <= channel.part_bytes, "ranks can't sum ", delta.rows,
          " rows at once");
  if (delta.rows == 0) return;
  const int threads = int((delta.cols / 8 + 31) / 32 * 32);
  auto with = [&](auto kernel) {
    launch(stream, kernel, dim3(unsigned(delta.rows)), threads, 0, out.as<T>(), out.stride, residual.as<float>(),
           residual.stride, static_cast<const float*>(delta.data), weight, epsilon, int(delta.cols), channel);
  };
  if (channel.world == 2) return with(sum_kernel<T, travel, 1, kNorm>);
  if (channel.world <= 4) return with(sum_kernel<T, travel, 3, kNorm>);
  with(sum_kernel<T, travel, kMostPeers, kNorm>);
}

}  // namespace

void make_empty(cudaStream_t stream, void* memory, int64_t bytes) {
  empty_kernel<<<256, 256, 0, stream>>>(static_cast<uint32_t*>(memory), bytes / 4);
  OARLOCK_CUDA_CHECK(cudaGetLastError());
}

void sum_add_norm(cudaStream_t stream, const Channel& channel, Travel travel, Tensor out, Tensor residual, Tensor delta,
                  const float* weight, float epsilon) {
  auto with = [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    switch (travel) {
      case Travel::whole:
        return go<T, Travel::whole, true>(stream, channel, out, residual, delta, weight, epsilon);
      case Travel::packed:
        return go<T, Travel::packed, true>(stream, channel, out, residual, delta, weight, epsilon);
      case Travel::sent:
        return go<T, Travel::sent, true>(stream, channel, out, residual, delta, weight, epsilon);
    }
  };
  out.dtype == DType::bf16 ? with(static_cast<__nv_bfloat16*>(nullptr)) : with(static_cast<__half*>(nullptr));
}

void sum(cudaStream_t stream, const Channel& channel, Tensor x) {
  go<float, Travel::whole, false>(stream, channel, x, x, x, nullptr, 0);
}

}  // namespace oarlock::cuda
