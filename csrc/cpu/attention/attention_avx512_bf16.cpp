// Attention with AVX-512's bf16 dot products: each instruction adds two products to each of 16 float32 sums.
#include <immintrin.h>

#include "cpu/attention/partition.h"
#include "cpu/vector/avx512.h"

namespace oarlock::cpu::avx512_bf16 {
namespace {

struct PairProduct {
  using V = Avx512Bf16;
  using Cache = bf16;
  using Query = bf16;
  using Probability = bf16;
  static constexpr int kGroupRows = 16;

  static void configure(int) {}
  static void release() {}
  static __m512 power_of_two(__m512 x) { return Avx512::exp2_coarse(x); }
  static void store_probabilities(bf16* to, __m512 p, __m512 q) { _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(q, p)); }

  // c[kRows][kWide * 16] = or += a[kRows][pairs] b[pairs][...], strides in elements of each (pairs for a and b).
  template <int kRows, int kWide>
  static void block(const int32_t* a, int a_stride, const int32_t* b, int b_stride, float* c, int c_stride, int pairs,
                    bool accumulate) {
    __m512 sums[kRows][kWide];
    for (int r = 0; r < kRows; ++r)
      for (int w = 0; w < kWide; ++w)
        sums[r][w] = accumulate ? _mm512_loadu_ps(c + r * c_stride + w * 16) : _mm512_setzero_ps();
    for (int pair = 0; pair < pairs; ++pair) {
      __m512bh columns[kWide];
      for (int w = 0; w < kWide; ++w) columns[w] = (__m512bh)_mm512_loadu_si512(b + int64_t(pair) * b_stride + w * 16);
      for (int r = 0; r < kRows; ++r) {
        __m512bh x = (__m512bh)_mm512_set1_epi32(a[r * a_stride + pair]);
        for (int w = 0; w < kWide; ++w) sums[r][w] = _mm512_dpbf16_ps(sums[r][w], x, columns[w]);
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int w = 0; w < kWide; ++w) _mm512_storeu_ps(c + r * c_stride + w * 16, sums[r][w]);
  }

  template <int kRows>
  static void rows(const int32_t* a, int a_stride, const int32_t* b, int b_stride, float* c, int c_stride, int columns,
                   int pairs, bool accumulate) {
    int column = 0;
    for (; column + 64 <= columns; column += 64)
      block<kRows, 4>(a, a_stride, b + column, b_stride, c + column, c_stride, pairs, accumulate);
    for (; column < columns; column += 16)
      block<kRows, 1>(a, a_stride, b + column, b_stride, c + column, c_stride, pairs, accumulate);
  }

  static void product(int count, const bf16* a, int a_stride, const void* b, int b_stride, float* c, int c_stride, int columns,
                      int pairs, bool accumulate) {
    const int32_t* left = reinterpret_cast<const int32_t*>(a);
    const int32_t* right = static_cast<const int32_t*>(b);
    int r = 0;
    auto part = [&](auto how_many) {
      constexpr int kRows = decltype(how_many)::value;
      rows<kRows>(left + r * a_stride, a_stride, right, b_stride, c + r * c_stride, c_stride, columns, pairs, accumulate);
      r += kRows;
    };
    while (r + 6 <= count) part(std::integral_constant<int, 6>{});
    if (count - r >= 4) part(std::integral_constant<int, 4>{});
    if (count - r == 3) part(std::integral_constant<int, 3>{});
    if (count - r == 2) part(std::integral_constant<int, 2>{});
    if (count - r == 1) part(std::integral_constant<int, 1>{});
  }

  static void score(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int first_row, int rows) {
    const int stride = query_stride(tile.head_dim);
    for (int b = blocks.begin; b < blocks.end; ++b) {
      product(rows, static_cast<const bf16*>(scratch.queries) + first_row * stride, stride / 2, blocks.keys[b], kBlockTokens,
              scratch.scores + b * kBlockTokens, kScoreStride, kBlockTokens, tile.head_dim / 2, false);
    }
  }

  static void sum(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int, int rows, float* out) {
    for (int b = blocks.begin; b < blocks.end; ++b) {
      product(rows, scratch.probabilities + b * kBlockTokens, kProbabilityStride / 2, blocks.values[b], tile.head_dim, out,
              tile.head_dim, tile.head_dim, kBlockTokens / 2, b > blocks.begin);
    }
  }
};

}  // namespace

const AttentionKernel attention_bf16 = PartitionSteps<PairProduct>::kernel();

}  // namespace oarlock::cpu::avx512_bf16
