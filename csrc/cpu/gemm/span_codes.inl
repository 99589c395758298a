// Tiles of int4 spans opened: their codes as the 8-bit ones that int8 spans have. Included by kernel files inside their unnamed
// namespaces.
//
// Two neighbouring codes of a column are multiplied at once, as the bytes of a 16-bit word: neither product leaves its byte.
#pragma once

#ifdef __AVX512BW__
constexpr int kWide = 64;
#else
constexpr int kWide = 32;
#endif
using WideBytes = uint8_t __attribute__((vector_size(kWide), may_alias));
using WideWords = uint16_t __attribute__((vector_size(kWide), may_alias));

// By 4 bytes of a column: its number for the first byte of each word and zeros for the second, or for every byte.
struct ColumnPlaces {
  alignas(64) uint8_t words[64] = {}, bytes[64] = {};
  constexpr ColumnPlaces() {
    for (int i = 0; i < 64; ++i) bytes[i] = uint8_t(i / 4), words[i] = i % 2 ? 0x80 : uint8_t(i / 4);
  }
};
constexpr ColumnPlaces kPlaces;

OARLOCK_INLINE WideBytes load_wide(const uint8_t* from) {
  WideBytes v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
// Of 16 bytes those at `places`.
OARLOCK_INLINE WideBytes spread(const uint8_t* from, const uint8_t* places) {
  const __m128i each = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
#ifdef __AVX512BW__
  return (WideBytes)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(each), _mm512_load_si512(places));
#else
  return (WideBytes)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(each), *reinterpret_cast<const __m256i*>(places));
#endif
}
OARLOCK_INLINE WideWords high_product(WideWords a, WideWords b) {
#ifdef __AVX512BW__
  return (WideWords)_mm512_mulhi_epu16((__m512i)a, (__m512i)b);
#else
  return (WideWords)_mm256_mulhi_epu16((__m256i)a, (__m256i)b);
#endif
}

// The multipliers and offsets of a group of 32 k, for kWide / 4 of a panel's columns.
struct GroupCodes {
  WideWords s, s_high;
  WideBytes z;

  // Of group 0 or 1 of a tile, its columns from kWide / 4 * part on; flip: 0x80 for codes + 128, else 0.
  __attribute__((always_inline)) inline void begin(const uint8_t* tile, int group, int part, uint8_t flip) {
    s = (WideWords)spread(tile + group * kPanel, kPlaces.words + part * kWide);
    s_high = s << 12;
    z = spread(tile + (2 + group) * kPanel, kPlaces.bytes + part * kWide) ^ flip;
  }
  // The codes of four k, in the low nibbles of 64 bytes or in the high ones, whose product of 16 and 2^12 times too much is
  // cut.
  __attribute__((always_inline)) inline WideBytes quad(const uint8_t* from, bool upper) const {
    const WideBytes both = load_wide(from);
    const WideWords product =
        upper ? high_product((WideWords)(both & uint8_t(0xf0)), s_high) : (WideWords)(both & uint8_t(0x0f)) * s;
    return (WideBytes)product + z;
  }
};

// A tile as int8 spans have it, of kInt8Tile bytes.
OARLOCK_INLINE void open_tile(const uint8_t* tile, uint8_t* to) {
#pragma GCC unroll 2
  for (int group = 0; group < 2; ++group) {
#pragma GCC unroll 2
    for (int part = 0; part < 64 / kWide; ++part) {
      GroupCodes codes;
      codes.begin(tile, group, part, 0);
#pragma GCC unroll 8
      for (int quad = 0; quad < 8; ++quad) {
        const WideBytes opened = codes.quad(tile + 64 + (group * 4 + quad / 2) * 64 + part * kWide, quad % 2);
        __builtin_memcpy(to + (group * 8 + quad) * 64 + part * kWide, &opened, sizeof opened);
      }
    }
  }
}
