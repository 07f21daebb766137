// Dot products of 8-bit weights, stored plus 128, and 8-bit activations, 4 steps of k at a time: the one
// operation of the 8-bit and 4-bit matrix products that each instruction set does in its own way.
#pragma once

#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

// Sums: kLanes columns of 32-bit sums. Weights: of those columns for 4 steps of k, kLanes x 4 bytes.
// Activations: the 4 that meet them. Sums are i32x: an array of __m512i is kept in memory by GCC 12, and
// every step then goes there and back. kExcess: what is still added to the weights when they are multiplied.
#if defined(__AVX512VNNI__)
constexpr int32_t kExcess = 128;
using Sums = i32x;
using Weights = __m512i;
using Activations = __m512i;
static inline Weights load_weights(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline Activations spread(int32_t four) { return _mm512_set1_epi32(four); }
static inline Sums add_products(Sums sums, Weights weights, Activations activations) {
  return reinterpret_cast<i32x>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums), weights, activations));
}
static inline i32x total(Sums sums) { return sums; }
#elif defined(__AVXVNNI__)
constexpr int32_t kExcess = 128;
using Sums = i32x;
using Weights = __m256i;
using Activations = __m256i;
static inline Weights load_weights(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
static inline Activations spread(int32_t four) { return _mm256_set1_epi32(four); }
static inline Sums add_products(Sums sums, Weights weights, Activations activations) {
  return reinterpret_cast<i32x>(
      _mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sums), weights, activations));
}
static inline i32x total(Sums sums) { return sums; }
#elif defined(__SSE2__)  // AVX2, too: vpmaddubsw, which takes bytes, would saturate
#define POCKETLM_PRODUCTS_OF_16_BITS
constexpr int32_t kExcess = 128;
typedef int16_t i16x __attribute__((vector_size(4 * kLanes)));
typedef uint16_t u16x __attribute__((vector_size(4 * kLanes)));
using Sums = i32x;
struct Weights {
  i16x even, odd;  // steps of k
};
using Activations = Weights;
static inline i16x repeat(int32_t pair) { return reinterpret_cast<i16x>(i32x{} + pair); }
static inline i32x sums_of_pairs(i16x a, i16x b) {
#if defined(__AVX2__)
  return reinterpret_cast<i32x>(
      _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  return reinterpret_cast<i32x>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#endif
}
static inline Weights load_weights(const uint8_t* p) {
  u16x bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return {reinterpret_cast<i16x>(bytes & 255), reinterpret_cast<i16x>(bytes >> 8)};
}
static inline Activations spread(int32_t four) {
  const i16x bytes = repeat(four);
  return {bytes << 8 >> 8, bytes >> 8};
}
static inline Activations load_activations(const int16_t* p) {
  int32_t even, odd;
  std::memcpy(&even, p, sizeof even);
  std::memcpy(&odd, p + 2, sizeof odd);
  return {repeat(even), repeat(odd)};
}
static inline Sums add_products(Sums sums, Weights weights, Activations activations) {
  sums += sums_of_pairs(weights.even, activations.even);
  return sums + sums_of_pairs(weights.odd, activations.odd);
}
static inline i32x total(Sums sums) { return sums; }
#elif defined(__ARM_FEATURE_DOTPROD) && defined(POCKETLM_NEON)
// Both sides are signed here. With its highest bit turned, weight + 128 is the weight.
constexpr int32_t kExcess = 0;
using Sums = i32x;
using Weights = int8x16_t;
using Activations = int8x16_t;
static inline Weights load_weights(const uint8_t* p) {
  return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(128)));
}
static inline Activations spread(int32_t four) { return vreinterpretq_s8_s32(vdupq_n_s32(four)); }
static inline Sums add_products(Sums sums, Weights weights, Activations activations) {
  return vdotq_s32(sums, weights, activations);
}
static inline i32x total(Sums sums) { return sums; }
#elif defined(POCKETLM_NEON)
constexpr int32_t kExcess = 0;
struct Sums {
  i32x low, high;  // columns 0 and 1, columns 2 and 3, two halves each
};
using Weights = int8x16_t;
using Activations = int8x16_t;
static inline Weights load_weights(const uint8_t* p) {
  return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(128)));
}
static inline Activations spread(int32_t four) { return vreinterpretq_s8_s32(vdupq_n_s32(four)); }
static inline Sums add_products(Sums sums, Weights weights, Activations activations) {
  return {vpadalq_s16(sums.low, vmull_s8(vget_low_s8(weights), vget_low_s8(activations))),
          vpadalq_s16(sums.high, vmull_high_s8(weights, activations))};
}
static inline i32x total(Sums sums) { return vpaddq_s32(sums.low, sums.high); }
#else
constexpr int32_t kExcess = 128;
using Sums = i32x;
using Weights = i32x;  // 4 steps of k in the bytes of each lane
using Activations = int32_t;
static inline Weights load_weights(const uint8_t* p) {
  Weights weights;
  std::memcpy(&weights, p, sizeof weights);
  return weights;
}
static inline Activations spread(int32_t four) { return four; }
static inline Sums add_products(Sums sums, Weights weights, Activations activations) {
  int8_t x[4];
  std::memcpy(x, &activations, 4);
  for (int j = 0; j < 4; ++j) sums += (weights >> (8 * j) & 0xff) * x[j];
  return sums;
}
static inline i32x total(Sums sums) { return sums; }
#endif

static inline Activations load_activations(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return spread(four);
}

// Rows as the products take them fastest, from memory.
#if defined(POCKETLM_PRODUCTS_OF_16_BITS)
constexpr bool kTakesWide = true;
static inline const int16_t* values_of(const QuantizedRows& rows) { return rows.wide; }
#else
constexpr bool kTakesWide = false;
static inline const int8_t* values_of(const QuantizedRows& rows) { return rows.values; }
#endif

}  // namespace pocketlm::POCKETLM_ISA
