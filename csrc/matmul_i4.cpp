// Rows times one panel of a weight matrix, 4-bit weights in groups of 16 along K, 8-bit activations.
//
//   out[t, n] = row_scale[t] * column_scale[n] * (sum over groups g of scale[g, n] * sum[t, g, n])
//   sum[t, g, n] = sum over k in g of x[t, k] * w[k, n]
//
// scale[g, n] and sum[t, g, n] are integers. From group to group they meet in one chain of fused
// multiply-adds, in the order of k, whatever the number of rows.
// A group of a panel is unpacked to bytes, in the layout of an int8 panel, and kRows rows pass it.
// Cost: 0.5625 K bytes of weights per column, read and unpacked once for every kRows rows.
#include "dot_i8.h"
#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

typedef uint8_t u8x __attribute__((vector_size(4 * kLanes)));

constexpr int kRows = 16;
constexpr int kVectors = kLanes == 16 ? 4 : 1;
constexpr int kQuads = kGroupSize / 4;
constexpr int kQuadBytes = 4 * kPanelColumns;  // of 4 steps of k, unpacked
constexpr int kPrefetchBytes = 8192;
// Weights are stored plus 8. Unpacked they stay so, but where the dot product takes off 128 by itself.
constexpr int kGroupExcess = kExcess == 0 ? 0 : 8;
constexpr uint8_t kToUnpacked = kExcess == 0 ? 120 : 0;

struct Group {
  alignas(64) uint8_t weights[kQuads * kQuadBytes];  // [16 / 4][64][4]
  alignas(64) float scales[kPanelColumns];
};

static inline void unpack(const uint8_t* packed, Group& group) {
  for (int line = 0; line < kGroupBytes; line += 64) __builtin_prefetch(packed + kPrefetchBytes + line, 0, 2);
  for (int pair = 0; pair < kQuads; pair += 2) {
    for (int j = 0; j < kQuadBytes; j += static_cast<int>(sizeof(u8x))) {
      u8x both;
      std::memcpy(&both, packed, sizeof both);
      packed += sizeof both;
      const u8x low = (both & 15) + kToUnpacked, high = (both >> 4) + kToUnpacked;
      std::memcpy(group.weights + pair * kQuadBytes + j, &low, sizeof low);
      std::memcpy(group.weights + (pair + 1) * kQuadBytes + j, &high, sizeof high);
    }
  }
  for (int c = 0; c < kPanelColumns; c += kLanes) {
    i8x scales;
    std::memcpy(&scales, packed + c, sizeof scales);
    const i32x wide = __builtin_convertvector(scales, i32x);  // at once, GCC 12 converts one by one
    store(group.scales + c, __builtin_convertvector(wide, f32x));
  }
}

// sums += scale * (x w), for the 4 * num_quads activations of one row and 64 columns.
static inline void add_group(const Group& group, const int8_t* x, int num_quads, float* sums) {
  int32_t row_sum = 0;
  for (int i = 0; i < 4 * num_quads; ++i) row_sum += x[i];
  for (int first = 0; first < kPanelColumns; first += kVectors * kLanes) {
    Sums products[kVectors] = {};
    for (int q = 0; q < num_quads; ++q) {
      int32_t four;
      std::memcpy(&four, x + 4 * q, 4);
      const Activations activations = spread(four);
      for (int v = 0; v < kVectors; ++v)
        products[v] =
            add_products(products[v], load_weights(group.weights + q * kQuadBytes + 4 * (first + v * kLanes)),
                         activations);
    }
    for (int v = 0; v < kVectors; ++v) {
      const int lane = first + v * kLanes;
      const f32x exact = __builtin_convertvector(total(products[v]) - kGroupExcess * row_sum, f32x);
      store(sums + lane, fma(load(group.scales + lane), exact, load(sums + lane)));
    }
  }
}

void matmul_i4(const uint8_t* panel, const float* column_scales, int k, const QuantizedRows& x, int num_rows,
               int column, const Output& out) {
  for (int first = 0; first < num_rows; first += kRows) {
    const int height = num_rows - first < kRows ? num_rows - first : kRows;
    float sums[kRows][kPanelColumns];
    std::memset(sums, 0, sizeof sums[0] * height);
    for (int i = 0; i < k; i += kGroupSize) {
      Group group;
      unpack(panel + static_cast<int64_t>(i / kGroupSize) * kGroupBytes, group);
      for (int r = 0; r < height; ++r) {
        const int8_t* values = x.values + (first + r) * x.stride + i;
        if (k - i >= kGroupSize)
          add_group(group, values, kQuads, sums[r]);
        else
          add_group(group, values, round_up(k - i, 4) / 4, sums[r]);
      }
    }
    for (int r = 0; r < height; ++r) {
      for (int c = 0; c < kPanelColumns; c += kLanes) {
        const f32x scale = x.scales[first + r] * load(column_scales + column + c);
        finish(load(sums[r] + c) * scale, out, first + r, column + c);
      }
    }
  }
}

}  // namespace pocketlm::POCKETLM_ISA
