// Rows times one panel of a weight matrix, 8-bit weights and activations.
//
//   out[t, n] = row_scale[t] * column_scale[n] * (sum over k of x[t, k] * (panel[k, n] - 128))
//
// Weights are stored plus 128, as x86's dot-product instruction wants one side unsigned; what that adds is
// 128 times the sum of the row, known beforehand. The sums are integers, so their order does not matter.
// Cost: K bytes of weights per column, read once for every kRows rows.
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
#elif defined(__AVX2__)
constexpr int32_t kExcess = 128;
// In 16 bits the products of two neighbours are added exactly; vpmaddubsw would saturate.
struct Sums {
  i32x low, high;  // columns 0 to 3, columns 4 to 7, two halves each
};
struct Weights {
  __m256i low, high;
};
using Activations = __m256i;
static inline Weights load_weights(const uint8_t* p) {
  const __m128i* halves = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepu8_epi16(_mm_loadu_si128(halves)), _mm256_cvtepu8_epi16(_mm_loadu_si128(halves + 1))};
}
static inline Activations spread(int32_t four) { return _mm256_cvtepi8_epi16(_mm_set1_epi32(four)); }
static inline Sums add_products(Sums sums, Weights weights, Activations activations) {
  return {sums.low + reinterpret_cast<i32x>(_mm256_madd_epi16(weights.low, activations)),
          sums.high + reinterpret_cast<i32x>(_mm256_madd_epi16(weights.high, activations))};
}
static inline i32x total(Sums sums) {  // add the two halves of each column, then put the columns in order
  const __m256i halves =
      _mm256_hadd_epi32(reinterpret_cast<__m256i>(sums.low), reinterpret_cast<__m256i>(sums.high));
  return reinterpret_cast<i32x>(_mm256_permute4x64_epi64(halves, 0b11011000));
}
#elif defined(__SSE2__)  // as AVX2, half as wide
constexpr int32_t kExcess = 128;
struct Sums {
  i32x low, high;  // columns 0 and 1, columns 2 and 3, two halves each
};
struct Weights {
  __m128i low, high;
};
using Activations = __m128i;
static inline Weights load_weights(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), zero = _mm_setzero_si128();
  return {_mm_unpacklo_epi8(bytes, zero), _mm_unpackhi_epi8(bytes, zero)};
}
// Each byte in the upper half of 16 bits, then shifted down with its sign.
static inline Activations spread(int32_t four) {
  const __m128i bytes = _mm_set1_epi32(four);
  return _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
}
static inline Sums add_products(Sums sums, Weights weights, Activations activations) {
  return {sums.low + reinterpret_cast<i32x>(_mm_madd_epi16(weights.low, activations)),
          sums.high + reinterpret_cast<i32x>(_mm_madd_epi16(weights.high, activations))};
}
static inline i32x total(Sums sums) {
  const __m128 low = reinterpret_cast<__m128>(sums.low), high = reinterpret_cast<__m128>(sums.high);
  return reinterpret_cast<i32x>(_mm_shuffle_ps(low, high, 0b10001000)) +
         reinterpret_cast<i32x>(_mm_shuffle_ps(low, high, 0b11011101));
}
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

constexpr int kRows = 6;
constexpr int kBytesPerStep = 4 * kPanelColumns;  // of a panel, for 4 steps of k

// How many vectors of columns a tile of so many rows is wide: its sums take three of four registers at most.
constexpr int width(int num_rows) {
  int vectors = kPanelColumns / kLanes;
  while (num_rows * vectors * sizeof(Sums) / sizeof(i32x) > kRegisters * 3 / 4) vectors /= 2;
  return vectors;
}

// Asks for weights ahead of their use: from `next` on, `step` bytes further in every step of the tile.
struct Prefetch {
  const uint8_t* next;
  int64_t step;
};

template <int kNumRows, int kVectors>
static void tile(const uint8_t* panel, const float* column_scales, int k, const QuantizedRows& x, int64_t row,
                 int column, int first, Prefetch ahead, const Output& out) {
  Sums sums[kNumRows][kVectors] = {};
  const int8_t* values = x.values + row * x.stride;
  for (int i = 0; i < k; i += 4) {
    for (int line = 0; line < kVectors * 4 * kLanes; line += 64)
      __builtin_prefetch(ahead.next + line, 0, 2);  // into the second-level cache
    ahead.next += ahead.step;
    Weights weights[kVectors];
    for (int v = 0; v < kVectors; ++v)
      weights[v] = load_weights(panel + (i * kPanelColumns + (first + v * kLanes) * 4));
    for (int r = 0; r < kNumRows; ++r) {
      int32_t four;
      std::memcpy(&four, values + r * x.stride + i, 4);
      const Activations activations = spread(four);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = add_products(sums[r][v], weights[v], activations);
    }
  }
  for (int r = 0; r < kNumRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      const int lane = first + v * kLanes;
      const i32x exact = total(sums[r][v]) - kExcess * x.sums[row + r];
      const f32x scale = x.scales[row + r] * load(column_scales + column + lane);
      finish(__builtin_convertvector(exact, f32x) * scale, out, row + r, column + lane);
    }
  }
}

// A panel is read from memory once and from cache by all tiles after the first. So that the first need not
// wait either, the tiles ask in even shares for the panel that follows in memory: the same thread most
// often takes it next. A single tile passes too fast for that and asks for its own panel's next weights; if
// it is low it is wide, so that few passes read them in the order of memory.
void matmul_i8(const uint8_t* panel, const float* column_scales, int k, const QuantizedRows& x, int num_rows,
               int column, const Output& out) {
  using Tile = void (*)(const uint8_t*, const float*, int, const QuantizedRows&, int64_t, int, int, Prefetch,
                        const Output&);
  constexpr int kAll = width(kRows);
  constexpr Tile kSingle[kRows] = {tile<1, width(1)>, tile<2, width(2)>, tile<3, width(3)>,
                                   tile<4, width(4)>, tile<5, width(5)>, tile<6, width(6)>};
  constexpr Tile kOfMany[kRows] = {tile<1, kAll>, tile<2, kAll>, tile<3, kAll>,
                                   tile<4, kAll>, tile<5, kAll>, tile<6, kAll>};
  constexpr int kAhead = 8192;  // bytes, of a single tile
  const int num_tiles = (num_rows + kRows - 1) / kRows;
  const Tile* tiles = num_tiles == 1 ? kSingle : kOfMany;
  const int num_columns = kLanes * (num_tiles == 1 ? width(num_rows) : kAll);
  const int num_passes = num_tiles * (kPanelColumns / num_columns);
  const int64_t steps = round_up(k, 4) / 4, step = (kBytesPerStep + num_passes - 1) / num_passes;
  Prefetch ahead = {panel + (num_tiles == 1 ? kAhead : steps * kBytesPerStep), step};
  for (int first = 0; first < kPanelColumns; first += num_columns) {
    for (int i = 0, row = 0; i < num_tiles; ++i) {
      const int height = (num_rows - row) / (num_tiles - i);  // as even as can be
      tiles[height - 1](panel, column_scales, k, x, row, column, first, ahead, out);
      row += height;
      ahead.next += steps * step;
    }
  }
}

// Symmetric: scale = largest / 127, value = round(x * 127 / largest).
void quantize(const float* x, int n, int8_t* values, float* scale, int32_t* sum) {
  const int whole = n / kLanes * kLanes, left = n - whole;
  const auto magnitude = [](f32x v) { return reinterpret_cast<i32x>(abs(v)); };
  i32x top = {};  // the bits of magnitudes are ordered as these are, infinity and NaN come last
  for (int i = 0; i < whole; i += kLanes) top = max(magnitude(load(x + i)), top);
  if (left) top = max(magnitude(load_some(x + whole, left, 0.0f)), top);
  const int32_t peak_bits = largest(top);
  float peak;
  std::memcpy(&peak, &peak_bits, 4);
  const bool finite = peak_bits < 0x7f800000;
  *scale = finite ? peak / 127.0f : NAN;
  if (!finite || peak == 0.0f) {
    std::memset(values, 0, round_up(n, 4));
    *sum = 0;
    return;
  }
  const float inverse = 127.0f / peak;
  i32x sums = {};
  const auto put = [&](f32x v, int8_t* place, int width) {
    const i32x rounded = round_to_int(v * inverse);
    const i8x bytes = __builtin_convertvector(rounded, i8x);
    std::memcpy(place, &bytes, width);
    sums += rounded;
  };
  for (int i = 0; i < whole; i += kLanes) put(load(x + i), values + i, kLanes);
  if (left) put(load_some(x + whole, left, 0.0f), values + whole, round_up(left, 4));
  *sum = pocketlm::POCKETLM_ISA::sum(sums);
}

}  // namespace pocketlm::POCKETLM_ISA
