// Dot products of one group of 4-bit weights, 0 to 15, and 8-bit activations, 4 steps of k at a time.
#pragma once

#include "dot_i8.h"

namespace pocketlm::POCKETLM_ISA::i4 {

#if defined(__AVX2__) && !defined(__AVXVNNI__) && !defined(__AVX512VNNI__)
// vpmaddubsw is exact here: of a group, two times four products of 15 * 127 at most are added in 16 bits.
using Sums = __m256i;
using Weights = __m256i;
using Activations = __m256i;
static inline Weights load_weights(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
static inline Activations load_activations(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}
static inline Sums add_products(Sums sums, Weights weights, Activations activations) {
  return _mm256_add_epi16(sums, _mm256_maddubs_epi16(weights, activations));
}
static inline i32x total(Sums sums) {
  return reinterpret_cast<i32x>(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
}
#else
using POCKETLM_ISA::Activations, POCKETLM_ISA::Sums, POCKETLM_ISA::Weights;
using POCKETLM_ISA::add_products, POCKETLM_ISA::load_activations, POCKETLM_ISA::load_weights,
    POCKETLM_ISA::total;
#endif

}  // namespace pocketlm::POCKETLM_ISA::i4
