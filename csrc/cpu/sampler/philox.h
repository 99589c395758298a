// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): random numbers as a function of a
// counter, so that a draw needs no state and repeats whatever else was drawn.
#pragma once

#include <cstdint>

namespace oarlock::cpu {

struct Philox {
  uint32_t words[4];
};

inline Philox philox4x32(const uint32_t (&counter)[4], uint64_t key) {
  uint32_t x[4] = {counter[0], counter[1], counter[2], counter[3]};
  uint32_t k[2] = {uint32_t(key), uint32_t(key >> 32)};
  for (int round = 0; round < 10; ++round) {
    uint64_t a = uint64_t(0xD2511F53u) * x[0], b = uint64_t(0xCD9E8D57u) * x[2];
    uint32_t next[4] = {uint32_t(b >> 32) ^ x[1] ^ k[0], uint32_t(b), uint32_t(a >> 32) ^ x[3] ^ k[1], uint32_t(a)};
    for (int i = 0; i < 4; ++i) x[i] = next[i];
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return {{x[0], x[1], x[2], x[3]}};
}

// In [0, 1), 53 bits.
inline double uniform(uint64_t seed, int32_t draw) {
  Philox random = philox4x32({uint32_t(draw), 0, 0, 0}, seed);
  uint64_t bits = (uint64_t(random.words[1]) << 32 | random.words[0]) >> 11;
  return double(bits) * 0x1.0p-53;
}

}  // namespace oarlock::cpu
