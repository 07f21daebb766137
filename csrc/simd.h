// The vector type of one instruction set and the few operations the kernels need.
//
// Kernel files are compiled once for each instruction set, with POCKETLM_ISA naming the namespace; all
// that is inline here lives in that namespace, so the linker never merges two of them. Arithmetic uses
// the compilers' vector extension; intrinsics stand only where C++ has no word for the instruction.
// Compiled with -ffp-contract=off: a multiply and an add are one instruction only where fma() says so.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"
#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(POCKETLM_NEON)
#include <arm_neon.h>
#endif

namespace pocketlm::POCKETLM_ISA {

#if defined(__AVX512VNNI__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(POCKETLM_NEON)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

static constexpr int smaller(int a, int b) { return a < b ? a : b; }

typedef float f32x __attribute__((vector_size(4 * kLanes)));
typedef int32_t i32x __attribute__((vector_size(4 * kLanes)));
typedef uint32_t u32x __attribute__((vector_size(4 * kLanes)));
typedef int8_t i8x __attribute__((vector_size(kLanes)));

static inline f32x load(const float* p) {
  f32x v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(float* p, f32x v) { std::memcpy(p, &v, sizeof v); }
// value - 0 is value, -0 too, so nothing is computed; value + 0 would cost an addition each time.
static inline f32x broadcast(float value) { return value - f32x{}; }

// The first n lanes (n < kLanes); the others load as `rest`, and are not stored.
static inline f32x load_some(const float* p, int n, float rest) {
  f32x v = broadcast(rest);
  std::memcpy(&v, p, 4 * n);
  return v;
}
static inline void store_some(float* p, f32x v, int n) { std::memcpy(p, &v, 4 * n); }

static inline f32x max(f32x a, f32x b) { return a > b ? a : b; }
static inline f32x min(f32x a, f32x b) { return a < b ? a : b; }
static inline f32x abs(f32x v) { return reinterpret_cast<f32x>(reinterpret_cast<i32x>(v) & 0x7fffffff); }

static inline f32x fma(f32x a, f32x b, f32x c) {
#if defined(__AVX512VNNI__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(POCKETLM_NEON)
  // Not vfmaq_f32: GCC 12 takes that for something that reads memory, and stores every sum before it.
  asm("fmla %0.4s, %1.4s, %2.4s" : "+w"(c) : "w"(a), "w"(b));
  return c;
#else
  return a * b + c;
#endif
}

static inline i32x max(i32x a, i32x b) { return a > b ? a : b; }

// The upper half of the lanes folded onto the lower one, and so on until one is left: always in this order.
template <class Lane, class Lanes, class Fold>
static inline Lane folded(Lanes v, const Fold& fold) {
#if defined(__AVX2__)
  typedef Lane Eight __attribute__((vector_size(32)));
  typedef Lane Four __attribute__((vector_size(16)));
#if defined(__AVX512VNNI__)  // with a mask: see load()
  const __m512i v16 = reinterpret_cast<__m512i>(v);
  const Eight v8 = fold(reinterpret_cast<Eight>(_mm512_maskz_extracti64x4_epi64(0xff, v16, 0)),
                        reinterpret_cast<Eight>(_mm512_maskz_extracti64x4_epi64(0xff, v16, 1)));
#else
  const Eight v8 = v;
#endif
  const Four v4 = fold(reinterpret_cast<Four>(_mm256_castsi256_si128(reinterpret_cast<__m256i>(v8))),
                       reinterpret_cast<Four>(_mm256_extracti128_si256(reinterpret_cast<__m256i>(v8), 1)));
  const Four v2 =
      fold(v4, reinterpret_cast<Four>(_mm_shuffle_epi32(reinterpret_cast<__m128i>(v4), 0b01001110)));
  return fold(v2, reinterpret_cast<Four>(_mm_shuffle_epi32(reinterpret_cast<__m128i>(v2), 0b10110001)))[0];
#else
  Lane lanes[kLanes];
  std::memcpy(lanes, &v, sizeof v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = fold(lanes[i], lanes[i + width]);
  return lanes[0];
#endif
}
static constexpr auto kLarger = [](auto a, auto b) { return a > b ? a : b; };
static constexpr auto kPlus = [](auto a, auto b) { return a + b; };
static inline int32_t largest(i32x v) { return folded<int32_t>(v, kLarger); }
static inline float largest(f32x v) { return folded<float>(v, kLarger); }
static inline int32_t sum(i32x v) { return folded<int32_t>(v, kPlus); }
static inline float sum(f32x v) { return folded<float>(v, kPlus); }
static inline bool any(i32x mask) {  // of lanes that are 0 or -1
#if defined(__AVX512VNNI__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(reinterpret_cast<__m256>(mask)) != 0;
#elif defined(POCKETLM_NEON)
  return vmaxvq_u32(reinterpret_cast<u32x>(mask)) != 0;
#else
  int32_t found = 0;
  for (int i = 0; i < kLanes; ++i) found |= mask[i];
  return found != 0;
#endif
}
static inline f32x load(const uint16_t* half) {
#if defined(__AVX512VNNI__)
  // The form with a mask: GCC 12 warns of an uninitialized register in the plain one.
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half)));
#elif defined(POCKETLM_NEON)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half)));
#else
  f32x v;
  for (int i = 0; i < kLanes; ++i) v[i] = half_to_float(half[i]);
  return v;
#endif
}

static inline f32x load(const int8_t* p) {
#if defined(__AVX512VNNI__)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return __builtin_convertvector(reinterpret_cast<i32x>(_mm512_maskz_cvtepi8_epi32(0xffff, bytes)), f32x);
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return __builtin_convertvector(reinterpret_cast<i32x>(_mm256_cvtepi8_epi32(bytes)), f32x);
#else
  i8x v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(__builtin_convertvector(v, i32x), f32x);  // at once, GCC 12 takes one by one
#endif
}

// To half precision: to nearest, ties to even.
static inline void store(uint16_t* half, f32x v) {
#if defined(__AVX512VNNI__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(half), _mm512_maskz_cvtps_ph(0xffff, v, 0));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(half), _mm256_cvtps_ph(v, 0));
#elif defined(POCKETLM_NEON)
  vst1_u16(half, vreinterpret_u16_f16(vcvt_f16_f32(v)));
#else
  for (int i = 0; i < kLanes; ++i) half[i] = float_to_half(v[i]);
#endif
}

// Adding 1.5 * 2^23 leaves no room for a fraction: the sum rounds to an integer, ties to even, and its
// low bits are that integer. For |v| < 2^22.
constexpr float kRounder = 12582912.0f;
static inline i32x round_to_int(f32x v) {
  return reinterpret_cast<i32x>(v + kRounder) - reinterpret_cast<i32x>(broadcast(kRounder));
}

// The lowest byte of each number.
static inline i8x low_bytes(i32x v) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
  // GCC 12's conversion takes lane after lane through a register of its own.
  const __m256i fours = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(v), _mm256_set1_epi32(0x0c080400));
  const __m128i bytes = _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
  i8x low;
  std::memcpy(&low, &bytes, sizeof low);
  return low;
#else
  return __builtin_convertvector(v, i8x);
#endif
}

// e^v to about 1e-7 relative; 0 below -87, e^88 above 88, NaN for NaN.
// v = n ln 2 + r with |r| <= ln 2 / 2, and e^v = 2^n e^r, the latter by its Taylor series.
static inline f32x exp(f32x v) {
  const f32x x = min(broadcast(88.0f), v);  // in this order a NaN stays
  const f32x shifted = fma(x, broadcast(1.44269504f), broadcast(kRounder));
  const f32x n = shifted - kRounder;
  f32x r = fma(n, broadcast(-0.693145752f), x);
  r = fma(n, broadcast(-1.42860677e-6f), r);
  f32x p = broadcast(1.0f / 5040);
  p = fma(p, r, broadcast(1.0f / 720));
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  const u32x power = (reinterpret_cast<u32x>(shifted) << 23) + 0x3f800000;  // 2^n
  return v < -87.0f ? broadcast(0.0f) : p * reinterpret_cast<f32x>(power);
}

}  // namespace pocketlm::POCKETLM_ISA
