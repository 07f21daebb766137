// Symmetric 8-bit numbers: value = round(x * 127 / largest), so that x is about value * largest / 127.
#pragma once

#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

static inline i32x magnitude_bits(f32x v) { return reinterpret_cast<i32x>(abs(v)); }

constexpr float kNextToNothing = 1e-30f;  // 127 divided by less may be infinite

struct Rounding {
  float scale;    // NaN where a number is not finite
  float inverse;  // 0 where all values are: in zeros, in what is next to nothing, and beside a NaN
};

// `top`: of all magnitudes the largest bits. They are ordered as the magnitudes are; infinity and NaN are
// last.
static inline Rounding rounding_of(i32x top) {
  const int32_t peak_bits = largest(top);
  float peak;
  std::memcpy(&peak, &peak_bits, 4);
  if (peak_bits >= 0x7f800000) return {NAN, 0.0f};
  return {peak / 127.0f, peak > kNextToNothing ? 127.0f / peak : 0.0f};
}

static inline Rounding rounding_of(const float* x, int n) {
  const int whole = n / kLanes * kLanes;
  i32x top = {};
  for (int i = 0; i < whole; i += kLanes) top = max(magnitude_bits(load(x + i)), top);
  if (n > whole) top = max(magnitude_bits(load_some(x + whole, n - whole, 0.0f)), top);
  return rounding_of(top);
}

// A row of numbers, padded with zeros to a multiple of 16, its scale, and their sum.
void quantize(const float* x, int n, int8_t* values, float* scale, int32_t* sum);

}  // namespace pocketlm::POCKETLM_ISA
