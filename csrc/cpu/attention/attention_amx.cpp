// Attention with AMX tiles: 16 rows x 16 columns of float32 sums, 32 bf16 products deep an instruction.
//
// Up to 32 rows by 32 columns at once: tiles 0 to 3 hold the sums, 4 and 5 the rows of the left operand, 6 and 7 columns of the
// right one, so that keys and values, which do not stay in the L1 cache, are read once for 32 rows. A tile of fewer than 16
// rows takes only as many: the sums of a row are the same.
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
  static constexpr int kGroupRows = 32;

  static void configure(int rows) {
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
      config.rows[tile] = uint8_t(tile >= 6 || rows > 16 ? 16 : rows);
      config.row_bytes[tile] = 64;
    }
    __asm__ volatile("" ::"r"(&config) : "memory");  // gcc 12 takes _tile_loadconfig to read 8 bytes and drops other stores
    _tile_loadconfig(&config);
  }
  static void release() { _tile_release(); }
  static __m512 power_of_two(__m512 x) { return Avx512::exp2_coarse(x); }
  static void store_probabilities(bf16* to, __m512 p, __m512 q) { _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(q, p)); }

  // One step of 32 along the contraction; rows of the operands lie left_row and right_row bytes apart.
  template <bool kTwo, bool kWide>
  static void step(const bf16* left, size_t left_row, const bf16* right, size_t right_row) {
    _tile_loadd(4, left, left_row);
    _tile_loadd(6, right, right_row);
    _tile_dpbf16ps(0, 4, 6);
    if (kTwo) {
      _tile_loadd(5, reinterpret_cast<const char*>(left) + 16 * left_row, left_row);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (kWide) {
      _tile_loadd(7, right + 32, right_row);
      _tile_dpbf16ps(1, 4, 7);
      if (kTwo) _tile_dpbf16ps(3, 5, 7);
    }
  }

  static void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  template <bool kTwo, bool kWide>
  static void store(float* to, size_t row_bytes) {
    float* lower = to + 4 * row_bytes;  // 16 rows on
    _tile_stored(0, to, row_bytes);
    if (kWide) _tile_stored(1, to + 16, row_bytes);
    if (kTwo) _tile_stored(2, lower, row_bytes);
    if (kTwo && kWide) _tile_stored(3, lower + 16, row_bytes);
  }

  template <bool kTwo>
  static void score_rows(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int first_row) {
    const int stride = query_stride(tile.head_dim), whole = tile.head_dim / 32;
    constexpr int kPairRow = kBlockTokens * 2;  // elements of one pair of components
    const bf16* queries = static_cast<const bf16*>(scratch.queries) + first_row * stride;
    for (int b = blocks.begin; b < blocks.end; ++b) {
      const bf16* keys = static_cast<const bf16*>(blocks.keys[b]);
      if (tile.head_dim % 32 != 0) {  // the last 16 components, and zeros in place of what lies behind the block
        std::memcpy(scratch.key_tail, keys + whole * 16 * kPairRow, 8 * kPairRow * sizeof(bf16));
        std::memset(scratch.key_tail + 8 * kPairRow, 0, 8 * kPairRow * sizeof(bf16));
      }
      for (int key = 0; key < kBlockTokens; key += 32) {
        clear();
        for (int k = 0; k < whole; ++k)
          step<kTwo, true>(queries + k * 32, size_t(stride) * 2, keys + k * 16 * kPairRow + key * 2, kPairRow * 2);
        if (tile.head_dim % 32 != 0)
          step<kTwo, true>(queries + whole * 32, size_t(stride) * 2, scratch.key_tail + key * 2, kPairRow * 2);
        store<kTwo, true>(scratch.scores + b * kBlockTokens + key, kScoreStride * 4);
      }
    }
  }

  template <bool kTwo, bool kWide>
  static void sum_columns(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int column,
                          float* out) {
    const size_t row_bytes = size_t(tile.head_dim) * 4;  // of out, and of a pair of values
    clear();
    for (int b = blocks.begin; b < blocks.end; ++b) {
      const bf16* values = static_cast<const bf16*>(blocks.values[b]) + column * 2;
      for (int key = 0; key < kBlockTokens; key += 32) {
        step<kTwo, kWide>(scratch.probabilities + b * kBlockTokens + key, kProbabilityStride * 2, values + key * tile.head_dim,
                          row_bytes);
      }
    }
    store<kTwo, kWide>(out + column, row_bytes);
  }

  static void score(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int first_row, int rows) {
    rows > 16 ? score_rows<true>(tile, scratch, blocks, first_row) : score_rows<false>(tile, scratch, blocks, first_row);
  }

  static void sum(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int, int rows, float* out) {
    int column = 0;
    for (; column + 32 <= tile.head_dim; column += 32) {
      rows > 16 ? sum_columns<true, true>(tile, scratch, blocks, column, out)
                : sum_columns<false, true>(tile, scratch, blocks, column, out);
    }
    if (column == tile.head_dim) return;
    rows > 16 ? sum_columns<true, false>(tile, scratch, blocks, column, out)
              : sum_columns<false, false>(tile, scratch, blocks, column, out);
  }
};

}  // namespace

const AttentionKernel attention_bf16 = PartitionSteps<TileProduct>::kernel();

}  // namespace oarlock::cpu::amx
