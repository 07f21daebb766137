// Philox 4x64, 10 rounds: a random number from a key and a counter, with no state.
// Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

namespace pocketlm {

// Uniform in [0, 1), 53 bits; equal to NumPy's Generator(Philox(key=seed, counter=position)).random().
inline double philox_uniform(uint64_t seed, uint64_t position) {
  uint64_t counter[4] = {position + 1, 0, 0, 0};  // NumPy counts up before it draws
  uint64_t key[2] = {seed, 0};
  for (int round = 0; round < 10; ++round) {
    __extension__ using uint128 = unsigned __int128;
    const uint128 a = static_cast<uint128>(0xD2E7470EE14C6C93) * counter[0];
    const uint128 b = static_cast<uint128>(0xCA5A826395121157) * counter[2];
    const uint64_t next[4] = {static_cast<uint64_t>(b >> 64) ^ counter[1] ^ key[0], static_cast<uint64_t>(b),
                              static_cast<uint64_t>(a >> 64) ^ counter[3] ^ key[1], static_cast<uint64_t>(a)};
    for (int i = 0; i < 4; ++i) counter[i] = next[i];
    key[0] += 0x9E3779B97F4A7C15;
    key[1] += 0xBB67AE8584CAA73B;
  }
  return static_cast<double>(counter[0] >> 11) * 0x1p-53;
}

}  // namespace pocketlm
