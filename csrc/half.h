// 16-bit floats to and from float, in integer arithmetic: IEEE 754 half precision, and bfloat16, the upper
// half of a float. Rounds to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace pocketlm {

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  uint32_t exponent = (half >> 10) & 0x1f;
  uint32_t mantissa = half & 0x3ff;
  uint32_t bits;
  if (exponent == 0x1f) {  // infinity or NaN
    bits = sign | 0x7f800000 | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {  // zero or subnormal: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;   // NaN
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to 2^16 or more: infinity
  if (bits < 0x38800000) {                       // below the normal range: let float addition round
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;  // the last bit of 0.5 is worth 2^-24, as that of a subnormal half
    uint32_t rounded;
    std::memcpy(&rounded, &magnitude, 4);
    return static_cast<uint16_t>(sign | (rounded - 0x3f000000));
  }
  const uint32_t round_to_even = 0xfff + ((bits >> 13) & 1);
  return static_cast<uint16_t>(sign | ((bits + round_to_even - 0x38000000) >> 13));
}

static inline uint16_t float_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // still a NaN
  const uint32_t round_to_even = 0x7fff + (bits >> 16 & 1);
  return static_cast<uint16_t>((bits + round_to_even) >> 16);
}

}  // namespace pocketlm
