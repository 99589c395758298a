// Attention with AMX tiles: 16 rows x 16 columns of float32 sums, 32 bf16 products deep an instruction.
//
// Scores live for one block of keys and stay in the L1 cache. Exponentials are taken from a row's largest score in the first
// block of the partition that it sees, so that no other block need be searched for a larger one: float32 and bf16 have room for
// scores 60 powers of two above it, and a row that finds larger ones starts again.
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

// Blocks whose probabilities are in the making together: as many as stay in the L1 cache with the scores.
constexpr int kSpanBlocks = 4;
constexpr int kSpanStride = kSpanBlocks * kBlockTokens + 32;  // padded as in tile.h
static_assert(kSpanStride <= kProbabilityStride, "the thread's scratch holds them");

// Rows of a group whose exponentials are in the making, against one partition. What is known of a row depends on its own
// scores alone.
struct GroupRows {
  int low[kMostGroupRows], high[kMostGroupRows];  // keys of the partition that a row sees
  bool known[kMostGroupRows];                     // whether shift is
  float shift[kMostGroupRows];                    // added to scaled scores: minus the largest one of the first block it sees
  alignas(64) float sums[kMostGroupRows][16];
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

  // One step of 32 along the contraction; rows of the operands lie left_row and right_row bytes apart. The right one, keys or
  // values, is read past the L1 cache, which the left one keeps.
  template <bool kTwo, bool kWide>
  static void step(const bf16* left, size_t left_row, const bf16* right, size_t right_row) {
    _tile_loadd(4, left, left_row);
    _tile_stream_loadd(6, right, right_row);
    _tile_dpbf16ps(0, 4, 6);
    if (kTwo) {
      _tile_loadd(5, reinterpret_cast<const char*>(left) + 16 * left_row, left_row);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (kWide) {
      _tile_stream_loadd(7, right + 32, right_row);
      _tile_dpbf16ps(1, 4, 7);
      if (kTwo) _tile_dpbf16ps(3, 5, 7);
    }
  }

  template <bool kTwo, bool kWide>
  static void load(const float* from, size_t row_bytes) {
    const float* lower = from + 4 * row_bytes;
    _tile_loadd(0, from, row_bytes);
    if (kWide) _tile_loadd(1, from + 16, row_bytes);
    if (kTwo) _tile_loadd(2, lower, row_bytes);
    if (kTwo && kWide) _tile_loadd(3, lower + 16, row_bytes);
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

  // Scores of a group's rows for one block.
  template <bool kTwo>
  static void score_rows(const AttentionTile& tile, TileScratch& scratch, const bf16* keys, int first_row, float* scores) {
    const int stride = query_stride(tile.head_dim), whole = tile.head_dim / 32;
    constexpr int kPairRow = kBlockTokens * 2;  // elements of one pair of components
    const bf16* queries = static_cast<const bf16*>(scratch.queries) + first_row * stride;
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
      store<kTwo, true>(scores + key, kBlockTokens * 4);
    }
  }

  // Weighted sums over blocks [begin, end), from zero (fresh) or onto out.
  template <bool kTwo, bool kWide>
  static void sum_columns(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int begin, int end,
                          bool fresh, int column, float* out) {
    const size_t row_bytes = size_t(tile.head_dim) * 4;  // of out, and of a pair of values
    if (fresh) {
      clear();
    } else {
      load<kTwo, kWide>(out + column, row_bytes);
    }
    for (int b = begin; b < end; ++b) {
      const bf16* values = static_cast<const bf16*>(blocks.values[b]) + column * 2;
      const bf16* probabilities = scratch.probabilities + (b - begin) * kBlockTokens;
      for (int key = 0; key < kBlockTokens; key += 32)
        step<kTwo, kWide>(probabilities + key, kSpanStride * 2, values + key * tile.head_dim, row_bytes);
    }
    store<kTwo, kWide>(out + column, row_bytes);
  }

  static float* block_scores(TileScratch& scratch, int block) {
    return scratch.scores + block % 2 * (kMostGroupRows * kBlockTokens);
  }

  static void score(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int block, int first_row,
                    int rows) {
    const bf16* keys = static_cast<const bf16*>(blocks.keys[block]);
    rows > 16 ? score_rows<true>(tile, scratch, keys, first_row, block_scores(scratch, block))
              : score_rows<false>(tile, scratch, keys, first_row, block_scores(scratch, block));
  }

  static void sum(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int begin, int end,
                  bool fresh, int rows, float* out) {
    int column = 0;
    for (; column + 32 <= tile.head_dim; column += 32) {
      rows > 16 ? sum_columns<true, true>(tile, scratch, blocks, begin, end, fresh, column, out)
                : sum_columns<false, true>(tile, scratch, blocks, begin, end, fresh, column, out);
    }
    if (column == tile.head_dim) return;
    rows > 16 ? sum_columns<true, false>(tile, scratch, blocks, begin, end, fresh, column, out)
              : sum_columns<false, false>(tile, scratch, blocks, begin, end, fresh, column, out);
  }

  // The scores of one block that a row sees, the others -inf.
  static void visible(const float* scores, int low, int high, __m512 (&x)[4]) {
    for (int v = 0; v < 4; ++v) {
      x[v] = _mm512_load_ps(scores + v * 16);
      if (low > 0 || high < kBlockTokens)
        x[v] = V::keep_range(x[v], low - v * 16, high - v * 16, _mm512_set1_ps(kMinusInfinity));
    }
  }

  static float largest(const __m512 (&x)[4]) {
    return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(x[0], x[1]), _mm512_max_ps(x[2], x[3])));
  }

  // A block's scores to probabilities, from `to` on, and their sums.
  static void exponentials(TileScratch& scratch, GroupRows& group, int rows, int block, float scale, bf16* to) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (int row = 0; row < rows; ++row, to += kSpanStride) {
      const int low = group.low[row] - block * kBlockTokens, high = group.high[row] - block * kBlockTokens;
      if (low >= kBlockTokens || high <= 0) {
        std::memset(to, 0, kBlockTokens * sizeof(bf16));
        continue;
      }
      __m512 x[4];
      visible(block_scores(scratch, block) + row * kBlockTokens, low, high, x);
      if (!group.known[row]) {
        const float most = largest(x);
        group.shift[row] = most == kMinusInfinity ? 0 : -most * scale;  // -inf - -inf would not be a number
        group.known[row] = true;
      }
      const __m512 shift = _mm512_set1_ps(group.shift[row]);
      for (int v = 0; v < 4; ++v) x[v] = power_of_two(_mm512_fmadd_ps(x[v], factor, shift));
      const __m512 sum = _mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3]));
      _mm512_store_ps(group.sums[row], _mm512_add_ps(_mm512_load_ps(group.sums[row]), sum));
      store_probabilities(to, x[0], x[1]);
      store_probabilities(to + 32, x[2], x[3]);
    }
  }

  // Sums and weighted sums of a group, from shifts that are known or those of each row's first block.
  static void pass(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, GroupRows& group,
                   int first_row, int rows, float* out) {
    for (int row = 0; row < rows; ++row) _mm512_store_ps(group.sums[row], _mm512_setzero_ps());
    score(tile, scratch, blocks, blocks.begin, first_row, rows);
    for (int begin = blocks.begin; begin < blocks.end; begin += kSpanBlocks) {
      const int end = begin + kSpanBlocks < blocks.end ? begin + kSpanBlocks : blocks.end;
      for (int b = begin; b < end; ++b) {
        if (b + 1 < blocks.end) score(tile, scratch, blocks, b + 1, first_row, rows);  // while these settle in the cache
        exponentials(scratch, group, rows, b, tile.scale_log2, scratch.probabilities + (b - begin) * kBlockTokens);
      }
      sum(tile, scratch, blocks, begin, end, begin == blocks.begin, rows, out);
    }
  }

  // The shifts of some rows from all of their scores.
  static void find_shifts(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, GroupRows& group,
                          int first_row, int rows, const bool* wanted) {
    float most[kMostGroupRows];
    for (int row = 0; row < rows; ++row) most[row] = kMinusInfinity;
    for (int b = blocks.begin; b < blocks.end; ++b) {
      score(tile, scratch, blocks, b, first_row, rows);
      for (int row = 0; row < rows; ++row) {
        __m512 x[4];
        visible(block_scores(scratch, b) + row * kBlockTokens, group.low[row] - b * kBlockTokens,
                group.high[row] - b * kBlockTokens, x);
        const float more = largest(x);
        if (more > most[row]) most[row] = more;
      }
    }
    for (int row = 0; row < rows; ++row)
      if (wanted[row]) group.shift[row] = -most[row] * tile.scale_log2;
  }

  static void group(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, Partial result,
                    int first_row, int rows) {
    constexpr float kMost = 0x1p60f;  // of a sum whose row has no need to start again
    float* out = result.out + first_row * tile.head_dim;
    GroupRows group;
    for (int row = 0; row < rows; ++row) {
      group.low[row] = within(blocks, tile.low[first_row + row]);
      group.high[row] = within(blocks, tile.high[first_row + row]);
      group.known[row] = false;
    }
    pass(tile, blocks, scratch, group, first_row, rows, out);
    bool wanted[kMostGroupRows], any = false;
    for (int row = 0; row < rows; ++row) {
      wanted[row] = !(_mm512_reduce_add_ps(_mm512_load_ps(group.sums[row])) <= kMost);
      any |= wanted[row];
    }
    if (any) {
      find_shifts(tile, blocks, scratch, group, first_row, rows, wanted);
      pass(tile, blocks, scratch, group, first_row, rows, out);
    }
    for (int row = 0; row < rows; ++row) {
      result.maximum[first_row + row] = group.known[row] ? -group.shift[row] : kMinusInfinity;
      result.sum[first_row + row] = _mm512_reduce_add_ps(_mm512_load_ps(group.sums[row]));
    }
  }

  static void partition(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, Partial result) {
    for (int row = 0; row < tile.rows; row += kGroupRows)
      group(tile, blocks, scratch, result, row, tile.rows - row < kGroupRows ? tile.rows - row : kGroupRows);
  }
};

}  // namespace

using Steps = PartitionSteps<TileProduct>;
const AttentionKernel attention_bf16 = {Steps::begin, TileProduct::partition, Steps::merge, Steps::finish,
                                        TileProduct::release};

}  // namespace oarlock::cpu::amx
