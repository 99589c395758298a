// Attention with AMX tiles: 16 rows x 16 columns of float32 sums, 32 bf16 products deep an instruction.
//
// Tiles 0..3 hold sums of two row groups x two column groups, 4 and 5 the left operand of each row group, 6 and 7 the right
// operand's columns. A tile of fewer rows takes fewer of them, down to one: the sums of a row are the same.
#include <immintrin.h>

#include <cstring>

#include "cpu/attention/partition.h"
#include "cpu/vector/avx512.h"

namespace oarlock::cpu::amx {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

struct TileProduct {
  using V = Avx512;
  using Cache = bf16;
  using Query = bf16;
  using Probability = bf16;

  static void configure(int rows) {
    TileConfig config;
    const int upper = rows < 16 ? rows : 16, lower = rows - upper;
    const int heights[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int tile = 0; tile < 8; ++tile) {
      config.rows[tile] = uint8_t(heights[tile]);
      config.row_bytes[tile] = heights[tile] == 0 ? 0 : 64;
    }
    __asm__ volatile("" ::"r"(&config) : "memory");  // gcc 12 takes _tile_loadconfig to read 8 bytes and drops other stores
    _tile_loadconfig(&config);
  }
  static void release() { _tile_release(); }
  static __m512 power_of_two(__m512 x) { return Avx512::exp2_coarse(x); }
  static void store_probabilities(bf16* to, __m512 p, __m512 q) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(q, p));
  }

  // One step of 32 along the contraction: sums += a b. b at two column groups, 64 bytes apart.
  template <bool kLower, bool kRight>
  static void step(const void* a, int64_t a_bytes, const void* b, int64_t b_bytes) {
    const char* left = static_cast<const char*>(a);
    const char* right = static_cast<const char*>(b);
    _tile_loadd(6, right, size_t(b_bytes));
    _tile_loadd(4, left, size_t(a_bytes));
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kRight) {
      _tile_loadd(7, right + 64, size_t(b_bytes));
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kLower) {
      _tile_loadd(5, left + 16 * a_bytes, size_t(a_bytes));
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kRight) _tile_dpbf16ps(3, 5, 7);
    }
  }

  template <bool kLower, bool kRight>
  static void clear() {
    _tile_zero(0);
    if constexpr (kRight) _tile_zero(1);
    if constexpr (kLower) _tile_zero(2);
    if constexpr (kLower && kRight) _tile_zero(3);
  }

  template <bool kLower, bool kRight>
  static void store(float* c, int64_t c_bytes) {
    char* to = reinterpret_cast<char*>(c);
    _tile_stored(0, to, size_t(c_bytes));
    if constexpr (kRight) _tile_stored(1, to + 64, size_t(c_bytes));
    if constexpr (kLower) _tile_stored(2, to + 16 * c_bytes, size_t(c_bytes));
    if constexpr (kLower && kRight) _tile_stored(3, to + 16 * c_bytes + 64, size_t(c_bytes));
  }

  template <bool kLower>
  static void scores_of(const AttentionTile& tile, TileScratch& scratch, const bf16* keys, int column) {
    const bf16* queries = static_cast<const bf16*>(scratch.queries);
    const int stride = query_stride(tile.head_dim), whole = tile.head_dim / 32;
    const int pair_row = kBlockTokens * 2;  // elements of one pair of components
    const bool tail = tile.head_dim % 32 != 0;
    if (tail) {  // the last 16 components, and zeros in place of what lies behind the block
      std::memcpy(scratch.key_tail, keys + whole * 16 * pair_row, 8 * pair_row * sizeof(bf16));
      std::memset(scratch.key_tail + 8 * pair_row, 0, 8 * pair_row * sizeof(bf16));
    }
    for (int half = 0; half < kBlockTokens; half += 32) {
      clear<kLower, true>();
      for (int k = 0; k < whole; ++k)
        step<kLower, true>(queries + k * 32, stride * 2, keys + k * 16 * pair_row + half * 2, pair_row * 2);
      if (tail) step<kLower, true>(queries + whole * 32, stride * 2, scratch.key_tail + half * 2, pair_row * 2);
      store<kLower, true>(scratch.scores + column + half, kScoreStride * 4);
    }
  }

  static void scores(const AttentionTile& tile, TileScratch& scratch, const void* keys, int column) {
    if (tile.rows > 16) return scores_of<true>(tile, scratch, static_cast<const bf16*>(keys), column);
    scores_of<false>(tile, scratch, static_cast<const bf16*>(keys), column);
  }

  template <bool kLower, bool kRight>
  static void weighted_columns(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, float* out,
                               int column) {
    clear<kLower, kRight>();
    for (int b = blocks.begin; b < blocks.end; ++b) {
      const bf16* values = static_cast<const bf16*>(blocks.values[b]) + column * 2;
      const bf16* probabilities = scratch.probabilities + b * kBlockTokens;
      for (int k = 0; k < 2; ++k)
        step<kLower, kRight>(probabilities + k * 32, kProbabilityStride * 2, values + k * 16 * tile.head_dim * 2,
                             tile.head_dim * 4);
    }
    store<kLower, kRight>(out + column, tile.head_dim * 4);
  }

  template <bool kLower>
  static void weighted_sum_of(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, float* out) {
    int column = 0;
    for (; column + 32 <= tile.head_dim; column += 32) weighted_columns<kLower, true>(tile, scratch, blocks, out, column);
    if (column < tile.head_dim) weighted_columns<kLower, false>(tile, scratch, blocks, out, column);
  }

  static void weighted_sum(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, float* out) {
    if (tile.rows > 16) return weighted_sum_of<true>(tile, scratch, blocks, out);
    weighted_sum_of<false>(tile, scratch, blocks, out);
  }
};

}  // namespace

const AttentionKernel attention_bf16 = PartitionSteps<TileProduct>::kernel();

}  // namespace oarlock::cpu::amx
