// Attention with AMX tiles: 16 rows x 16 columns of float32 sums, 32 bf16 products deep an instruction.
//
// Scores live for a strip of 32 keys and stay in the L1 cache. A strip's exponentials are taken from the score of the first key
// of the partition that a row sees, so that no largest one need be searched for: float32 and bf16 have room for scores 60
// powers of two above it, and a row that finds larger ones starts again. They are computed between the tile products of the
// next strip's scores, a few rows after each. Sums of probabilities are tile products too, with ones in place of values.
//
// Up to 32 rows by 32 columns at once: tiles 0 to 3 hold the sums, 4 and 5 the rows of the left operand, 6 and 7 columns of the
// right one, so that keys and values, which do not stay in the L1 cache, are read once for 32 rows. A tile of fewer than 16
// rows takes only as many: the sums of a row are the same.
#include <immintrin.h>

#include <cstring>

#include "cpu/attention/partition.h"
#include "cpu/attention/powers.h"
#include "cpu/vector/avx512.h"

namespace oarlock::cpu::amx {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

constexpr int kStrip = 32;  // keys whose scores are in the making together
// Strips whose probabilities are in the making together: as many as stay in the L1 cache with the scores.
constexpr int kSpanStrips = 8;
constexpr int kSpanStride = kSpanStrips * kStrip + 32;  // padded as in tile.h
static_assert(kSpanStride <= kProbabilityStride, "the thread's scratch holds them");

constexpr float kMost = 0x1p60f;  // of a sum whose row has no need to start again

// A right operand that sums up rows of the left one.
struct Ones {
  alignas(64) uint16_t of[16 * 32];
  constexpr Ones() : of() {
    for (uint16_t& one : of) one = 0x3f80;
  }
};
constexpr Ones kOnes;

// Rows of a group whose exponentials are in the making, against one partition. What is known of a row depends on its own
// scores alone.
struct GroupRows {
  int rows, easy = 0;                             // rows whose shifts Powers can take
  int low[kMostGroupRows], high[kMostGroupRows];  // keys of the partition that a row sees
  bool known[kMostGroupRows];                     // whether shift is
  bool careful[kMostGroupRows];                   // whether scores or shift are too large for Powers
  float shift[kMostGroupRows];                    // added to scaled scores: minus that of the first key it sees, or the largest
  float shifted[kMostGroupRows];                  // the same as Powers wants it
  alignas(64) float sums[kMostGroupRows][16];     // of probabilities, all 16 alike

  // Whether all rows see all of a strip and have shifts that Powers can take.
  bool plain(int strip) const { return easy == rows && low[rows - 1] <= strip * kStrip && high[0] >= (strip + 1) * kStrip; }
};

struct TileProduct {
  using V = Avx512Bf16;
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

  // The operands of steps of 32 along the contraction; rows lie left_row and right_row bytes apart. The right ones, keys or
  // values, are read past the L1 cache, which the left ones keep.
  struct Operands {
    const bf16* left;
    size_t left_row;
    const bf16* right;
    size_t right_row;

    const void* lower() const { return reinterpret_cast<const char*>(left) + 16 * left_row; }
  };

  template <bool kTwo, bool kWide>
  static void load_operands(const Operands& at) {
    _tile_stream_loadd(6, at.right, at.right_row);
    _tile_loadd(4, at.left, at.left_row);
    if (kTwo) _tile_loadd(5, at.lower(), at.left_row);
    if (kWide) _tile_stream_loadd(7, at.right + 32, at.right_row);
  }

  // One step by operands that are loaded. Those of the next one are loaded on the way, and beside() is called after each
  // product.
  template <bool kTwo, bool kWide, bool kNext, class Beside>
  static void step(const Operands& next, Beside&& beside) {
    _tile_dpbf16ps(0, 4, 6);
    if (kTwo) {
      beside();
      _tile_dpbf16ps(2, 5, 6);
    }
    if (kNext) _tile_stream_loadd(6, next.right, next.right_row);
    beside();
    if (kWide) _tile_dpbf16ps(1, 4, 7);
    if (kNext) _tile_loadd(4, next.left, next.left_row);
    if (kWide && kTwo) {
      beside();
      _tile_dpbf16ps(3, 5, 7);
    }
    if (kNext && kTwo) _tile_loadd(5, next.lower(), next.left_row);
    if (kNext && kWide) _tile_stream_loadd(7, next.right + 32, next.right_row);
    if (kWide) beside();
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

  // Scores of a group's rows for one strip. beside(row, end) is called with all rows in turn, a few at a time.
  template <bool kTwo, class Beside>
  static void score_rows(const AttentionTile& tile, TileScratch& scratch, const bf16* keys, int first_row, int rows,
                         float* scores, Beside&& beside) {
    const int stride = query_stride(tile.head_dim), whole = tile.head_dim / 32;
    const bool tail = tile.head_dim % 32 != 0;
    constexpr int kPairRow = kBlockTokens * 2;  // elements of one pair of components
    const bf16* queries = static_cast<const bf16*>(scratch.queries) + first_row * stride;
    const int products = (kTwo ? 4 : 2) * (whole + tail), at_once = (rows + products - 1) / products;
    int row = 0;
    auto some_rows = [&] {
      const int end = row + at_once < rows ? row + at_once : rows;
      if (row < end) beside(row, end);
      row = end;
    };
    if (tail) {  // the last 16 components, and zeros in place of what lies behind the block
      for (int pair = 0; pair < 8; ++pair)
        std::memcpy(scratch.key_tail + pair * kStrip * 2, keys + (whole * 16 + pair) * kPairRow, kStrip * 2 * sizeof(bf16));
      std::memset(scratch.key_tail + 8 * kStrip * 2, 0, 8 * kStrip * 2 * sizeof(bf16));
    }
    auto operands = [&](int k) {
      const Operands all{queries + k * 32, size_t(stride) * 2, keys + k * 16 * kPairRow, kPairRow * 2};
      return k < whole ? all : Operands{all.left, all.left_row, scratch.key_tail, kStrip * 4};
    };
    clear();
    load_operands<kTwo, true>(operands(0));
    int k = 1;
    for (; k < whole + tail; ++k) step<kTwo, true, true>(operands(k), some_rows);
    step<kTwo, true, false>({}, some_rows);
    store<kTwo, true>(scores, kStrip * 4);
  }

  // Weighted sums over strips [begin, end), from zero (fresh) or onto out.
  template <bool kTwo, bool kWide>
  static void sum_columns(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int begin, int end,
                          bool fresh, int column, float* out) {
    const size_t row_bytes = size_t(tile.head_dim) * 4;  // of out, and of a pair of values
    if (fresh) {
      clear();
    } else {
      load<kTwo, kWide>(out + column, row_bytes);
    }
    auto operands = [&](int strip) {
      const int key = strip * kStrip;
      const bf16* values = static_cast<const bf16*>(blocks.values[key / kBlockTokens]) + column * 2;
      return Operands{scratch.probabilities + (strip - begin) * kStrip, kSpanStride * 2,
                      values + key % kBlockTokens * tile.head_dim, row_bytes};
    };
    load_operands<kTwo, kWide>(operands(begin));
    for (int strip = begin + 1; strip < end; ++strip) step<kTwo, kWide, true>(operands(strip), [] {});
    step<kTwo, kWide, false>({}, [] {});
    store<kTwo, kWide>(out + column, row_bytes);
  }

  // The same of the probabilities themselves.
  template <bool kTwo>
  static void sum_probabilities(TileScratch& scratch, GroupRows& group, int strips, bool fresh) {
    if (fresh) {
      clear();
    } else {
      load<kTwo, false>(group.sums[0], 64);
    }
    _tile_loadd(6, kOnes.of, 64);
    const bf16* probabilities = scratch.probabilities;
    for (int strip = 0; strip < strips; ++strip, probabilities += kStrip) {
      _tile_loadd(4, probabilities, kSpanStride * 2);
      _tile_dpbf16ps(0, 4, 6);
      if (kTwo) {
        _tile_loadd(5, probabilities + 16 * kSpanStride, kSpanStride * 2);
        _tile_dpbf16ps(2, 5, 6);
      }
    }
    store<kTwo, false>(group.sums[0], 64);
  }

  static float* strip_scores(TileScratch& scratch, int strip) { return scratch.scores + strip % 2 * (kMostGroupRows * kStrip); }

  template <class Beside>
  static void score(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, int strip, int first_row,
                    int rows, Beside&& beside) {
    const int key = strip * kStrip;
    const bf16* keys = static_cast<const bf16*>(blocks.keys[key / kBlockTokens]) + key % kBlockTokens * 2;
    rows > 16 ? score_rows<true>(tile, scratch, keys, first_row, rows, strip_scores(scratch, strip), beside)
              : score_rows<false>(tile, scratch, keys, first_row, rows, strip_scores(scratch, strip), beside);
  }

  template <bool kTwo>
  static void sum(const AttentionTile& tile, TileScratch& scratch, const PartitionBlocks& blocks, GroupRows& group, int begin,
                  int end, bool fresh, float* out) {
    int column = 0;
    for (; column + 32 <= tile.head_dim; column += 32)
      sum_columns<kTwo, true>(tile, scratch, blocks, begin, end, fresh, column, out);
    if (column < tile.head_dim) sum_columns<kTwo, false>(tile, scratch, blocks, begin, end, fresh, column, out);
    sum_probabilities<kTwo>(scratch, group, end - begin, fresh);
  }

  // A strip's scores as far as keys [low, high) of it go, the others -inf.
  static void visible(const float* scores, int low, int high, __m512 (&x)[2]) {
    for (int v = 0; v < 2; ++v)
      x[v] = V::keep_range(_mm512_load_ps(scores + v * 16), low - v * 16, high - v * 16, _mm512_set1_ps(kMinusInfinity));
  }

  // One row's scores of a strip to probabilities, whatever they are and whether it sees them.
  __attribute__((noinline)) static void any_row(const float* scores, GroupRows& group, const Powers& powers, float scale,
                                                int row, int strip, bf16* to) {
    const int low = group.low[row] - strip * kStrip, high = group.high[row] - strip * kStrip;
    if (low >= kStrip || high <= 0) return _mm512_storeu_si512(to, _mm512_setzero_si512());
    if (!group.known[row]) {
      const float first = -scores[low > 0 ? low : 0] * scale;
      const bool finite = first - first == 0;
      group.known[row] = true;
      group.careful[row] = !Powers::takes(first);
      group.shift[row] = finite ? __builtin_rintf(first) : 0;
      group.shifted[row] = Powers::shifted(group.shift[row]);
      group.easy += !group.careful[row];
    }
    if (group.careful[row]) {
      __m512 x[2];
      visible(scores, low, high, x);
      const __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(group.shift[row]);
      for (__m512& value : x) value = V::exp2_coarse(_mm512_fmadd_ps(value, factor, shift));
      return _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]));
    }
    const uint32_t below_high = high >= kStrip ? ~0u : (1u << high) - 1, below_low = low <= 0 ? 0 : (1u << low) - 1;
    __m512i p = powers.of(scores, group.shifted[row]);
    _mm512_storeu_si512(to, _mm512_maskz_mov_epi16(below_high & ~below_low, p));
  }

  // Sums and weighted sums of a group over strips [begin, end), from shifts that are known or those of each row's first key.
  static void pass(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, GroupRows& group,
                   int first_row, int begin, int end, float* out) {
    const Powers powers(tile.scale_log2);
    score(tile, scratch, blocks, begin, first_row, group.rows, [](int, int) {});
    for (int first = begin; first < end; first += kSpanStrips) {
      const int last = first + kSpanStrips < end ? first + kSpanStrips : end;
      for (int strip = first; strip < last; ++strip) {
        const float* scores = strip_scores(scratch, strip);
        bf16* to = scratch.probabilities + (strip - first) * kStrip;
        const bool plain = group.plain(strip);
        auto exponentials = [&](int row, int rows_end) {
          if (plain) {
            for (; row < rows_end; ++row)
              _mm512_storeu_si512(to + row * kSpanStride, powers.of(scores + row * kStrip, group.shifted[row]));
          } else {
            for (; row < rows_end; ++row)
              any_row(scores + row * kStrip, group, powers, tile.scale_log2, row, strip, to + row * kSpanStride);
          }
        };
        if (strip + 1 < end) {
          score(tile, scratch, blocks, strip + 1, first_row, group.rows, exponentials);
        } else {
          exponentials(0, group.rows);
        }
      }
      group.rows > 16 ? sum<true>(tile, scratch, blocks, group, first, last, first == begin, out)
                      : sum<false>(tile, scratch, blocks, group, first, last, first == begin, out);
    }
  }

  // The shifts of some rows from all of their scores.
  static void find_shifts(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, GroupRows& group,
                          int first_row, int begin, int end, const bool* wanted) {
    float most[kMostGroupRows];
    for (int row = 0; row < group.rows; ++row) most[row] = kMinusInfinity;
    for (int strip = begin; strip < end; ++strip) {
      score(tile, scratch, blocks, strip, first_row, group.rows, [](int, int) {});
      for (int row = 0; row < group.rows; ++row) {
        __m512 x[2];
        visible(strip_scores(scratch, strip) + row * kStrip, group.low[row] - strip * kStrip, group.high[row] - strip * kStrip,
                x);
        const float more = _mm512_reduce_max_ps(_mm512_max_ps(x[0], x[1]));
        if (more > most[row]) most[row] = more;
      }
    }
    for (int row = 0; row < group.rows; ++row) {
      if (!wanted[row]) continue;
      group.shift[row] = most[row] == kMinusInfinity ? 0 : -most[row] * tile.scale_log2;  // -inf - -inf is not a number
      group.easy -= !group.careful[row];
      group.careful[row] = true;
    }
  }

  static void group(const AttentionTile& tile, const PartitionBlocks& blocks, TileScratch& scratch, Partial result,
                    int first_row, int rows) {
    float* out = result.out + first_row * tile.head_dim;
    GroupRows group;
    group.rows = rows;
    for (int row = 0; row < rows; ++row) {
      group.low[row] = within(blocks, tile.low[first_row + row]);
      group.high[row] = within(blocks, tile.high[first_row + row]);
      group.known[row] = group.careful[row] = false;
      group.sums[row][0] = 0;
    }
    // What no row sees is left out; to multiply it by zeros would change no bit.
    const int begin = group.low[0] / kStrip, end = (group.high[rows - 1] + kStrip - 1) / kStrip;
    if (begin < end) {
      pass(tile, blocks, scratch, group, first_row, begin, end, out);
      bool wanted[kMostGroupRows], any = false;
      for (int row = 0; row < rows; ++row) {
        wanted[row] = !(group.sums[row][0] <= kMost);
        any |= wanted[row];
      }
      if (any) {
        find_shifts(tile, blocks, scratch, group, first_row, begin, end, wanted);
        pass(tile, blocks, scratch, group, first_row, begin, end, out);
      }
    }
    for (int row = 0; row < rows; ++row) {
      result.maximum[first_row + row] = group.known[row] ? -group.shift[row] : kMinusInfinity;
      result.sum[first_row + row] = group.sums[row][0];
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
