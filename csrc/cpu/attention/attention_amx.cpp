// Attention with AMX tiles: 16 rows x 16 columns of float32 sums, 32 bf16 products deep an instruction.
//
// Scores use tiles 0 and 1 for the sums of two column groups and 4 for the left operand; weighted sums use 2, 3 and 5, so
// that one group's weighted sum can be under way while the next one's scores are; 6 and 7 are the right operand's columns of
// either. A tile of fewer than 16 rows takes only as many: the sums of a row are the same.
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
  static constexpr bool kOverlap = true;

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

  static int score_slices(const AttentionTile&, const PartitionBlocks& blocks) { return (blocks.end - blocks.begin) * 2; }

  // 32 keys: a block has two slices.
  static void score_slice(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int group,
                          int slice) {
    const int b = blocks.begin + slice / 2, half = slice % 2 * 32;
    const int stride = query_stride(tile.head_dim), whole = tile.head_dim / 32;
    const int pair_row = kBlockTokens * 2;  // elements of one pair of components
    const bf16* queries = static_cast<const bf16*>(scratch.queries) + group * kRowGroup * stride;
    const bf16* keys = static_cast<const bf16*>(blocks.keys[b]);
    auto step = [&](const bf16* left, const bf16* right) {
      _tile_loadd(4, left, size_t(stride) * 2);
      _tile_loadd(6, right, size_t(pair_row) * 2);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, right + 32, size_t(pair_row) * 2);
      _tile_dpbf16ps(1, 4, 7);
    };
    _tile_zero(0);
    _tile_zero(1);
    for (int k = 0; k < whole; ++k) step(queries + k * 32, keys + k * 16 * pair_row + half * 2);
    if (tile.head_dim % 32 != 0) {  // the last 16 components, and zeros in place of what lies behind the block
      std::memcpy(scratch.key_tail, keys + whole * 16 * pair_row, 8 * pair_row * sizeof(bf16));
      std::memset(scratch.key_tail + 8 * pair_row, 0, 8 * pair_row * sizeof(bf16));
      step(queries + whole * 32, scratch.key_tail + half * 2);
    }
    float* scores = group_scores(scratch, group) + b * kBlockTokens + half;
    _tile_stored(0, scores, kScoreStride * 4);
    _tile_stored(1, scores + 16, kScoreStride * 4);
  }

  static int sum_slices(const AttentionTile& tile, const PartitionBlocks& blocks) {
    return (blocks.end - blocks.begin) * ((tile.head_dim + 31) / 32);
  }

  // One block's share of 32 columns; the sums stay in their tiles from a column pair's first block to its last.
  static void sum_slice(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int group, int slice,
                        float* out) {
    const int count = blocks.end - blocks.begin, column = slice / count * 32, b = blocks.begin + slice % count;
    const bool right = column + 16 < tile.head_dim;
    const size_t row_bytes = size_t(tile.head_dim) * 4;
    const bf16* probabilities = group_probabilities(scratch, group) + b * kBlockTokens;
    const bf16* values = static_cast<const bf16*>(blocks.values[b]) + column * 2;
    if (b == blocks.begin) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int k = 0; k < 2; ++k) {
      const bf16* pairs = values + k * 16 * tile.head_dim * 2;
      _tile_loadd(5, probabilities + k * 32, kProbabilityStride * 2);
      _tile_loadd(6, pairs, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if (!right) continue;
      _tile_loadd(7, pairs + 32, row_bytes);
      _tile_dpbf16ps(3, 5, 7);
    }
    if (b + 1 < blocks.end) return;
    float* to = out + group * kRowGroup * tile.head_dim + column;
    _tile_stored(2, to, row_bytes);
    if (right) _tile_stored(3, to + 16, row_bytes);
  }
};

}  // namespace

const AttentionKernel attention_bf16 = PartitionSteps<TileProduct>::kernel();

}  // namespace oarlock::cpu::amx
