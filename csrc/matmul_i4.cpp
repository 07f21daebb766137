// Rows times one panel of a weight matrix, 4-bit weights in groups of 16 along K, 8-bit activations.
//
//   out[t, n] = row_scale[t] * column_scale[n] * (sum over groups g of scale[g, n] * sum[t, g, n])
//   sum[t, g, n] = sum over k in g of x[t, k] * w[k, n]
//
// scale[g, n] and sum[t, g, n] are integers. From group to group they meet in one chain of fused
// multiply-adds, in the order of k, whatever the number of rows.
// Cost: 0.5625 K bytes of weights per column, read once and unpacked again for every kRows rows.
#include "dot_i4.h"
#include "finish.h"
#include "prefetch.h"

namespace pocketlm::POCKETLM_ISA {

typedef uint8_t u8x __attribute__((vector_size(4 * kLanes)));

constexpr int kRegistersPerProduct = sizeof(i4::Sums) / sizeof(f32x);
constexpr int kRows = kRegistersPerProduct == 1 ? 6 : 4;
// Weights are stored plus 8. Unpacked they stay so, but where the dot product takes off 128 by itself.
constexpr int kGroupExcess = kExcess == 0 ? 0 : 8;
constexpr uint8_t kToUnpacked = kExcess == 0 ? 120 : 0;

// Whether the sums of a tile and the products of so many of its vectors take three of four registers at most.
constexpr bool fits(int num_rows, int num_vectors, int num_together) {
  return num_rows * (num_vectors + num_together * kRegistersPerProduct) <= kRegisters * 3 / 4;
}
// How many vectors of columns a tile of so many rows is wide.
constexpr int width(int num_rows) {
  int vectors = kPanelColumns / kLanes;
  while (!fits(num_rows, vectors, 1)) vectors /= 2;
  return vectors;
}

static inline i4::Weights weights_of(u8x numbers) {
  return i4::load_weights(reinterpret_cast<const uint8_t*>(&numbers));
}

template <int kNumRows, int kVectors>
static void tile(const uint8_t* panel, const float* column_scales, int k, const QuantizedRows& x, int64_t row,
                 int column, int first, const Output& out) {
  constexpr int kTogether = fits(kNumRows, kVectors, kVectors) ? kVectors : 1;
  f32x sums[kNumRows][kVectors] = {};
  const int64_t num_groups = x.stride / kGroupSize;
  const int8_t* values = x.values + row * x.stride;
  const int32_t* group_sums = x.group_sums + row * num_groups;
  for (int i = 0; i < k; i += kGroupSize, panel += kGroupBytes) {
    if (row == 0 && first == 0)
      for (int line = 0; line < kGroupBytes; line += 64) __builtin_prefetch(panel + kBytesAhead + line, 0, 2);
    for (int start = 0; start < kVectors; start += kTogether) {
      i4::Sums products[kNumRows][kTogether] = {};
      for (int j = 0; j < kGroupSize; j += 8) {
        for (int v = 0; v < kTogether; ++v) {
          u8x both;  // k = i + j to i + j + 3 in the low halves, the next four in the high ones
          std::memcpy(&both, panel + (j / 8 * kPanelColumns + first + (start + v) * kLanes) * 4, sizeof both);
          const i4::Weights low = weights_of((both & 15) + kToUnpacked),
                            high = weights_of((both >> 4) + kToUnpacked);
          for (int r = 0; r < kNumRows; ++r) {
            const int8_t* eight = values + r * x.stride + i + j;
            products[r][v] = i4::add_products(products[r][v], low, i4::load_activations(eight));
            products[r][v] = i4::add_products(products[r][v], high, i4::load_activations(eight + 4));
          }
        }
      }
      for (int v = 0; v < kTogether; ++v) {
        const uint8_t* place = panel + kGroupBytes - kPanelColumns + first + (start + v) * kLanes;
        const f32x scales = load(reinterpret_cast<const int8_t*>(place));
        for (int r = 0; r < kNumRows; ++r) {
          const int32_t excess = kGroupExcess * group_sums[r * num_groups + i / kGroupSize];
          f32x& sum = sums[r][start + v];
          sum = fma(scales, __builtin_convertvector(i4::total(products[r][v]) - excess, f32x), sum);
        }
      }
    }
  }
  const auto column_of = [&](int v) { return column + first + v * kLanes; };
  finish<kNumRows, kVectors>(out, row, column_of, [&](int r, int v) {
    return sums[r][v] * (x.scales[row + r] * load(column_scales + column_of(v)));
  });
}

template <int kNumRows>
static void tiles(const uint8_t* panel, const float* column_scales, int k, const QuantizedRows& x,
                  int64_t row, int column, const Output& out) {
  for (int first = 0; first < kPanelColumns; first += width(kNumRows) * kLanes)
    tile<kNumRows, width(kNumRows)>(panel, column_scales, k, x, row, column, first, out);
}

void matmul_i4(const uint8_t* panel, const float* column_scales, int k, const QuantizedRows& x, int num_rows,
               int column, const Output& out) {
  using Tiles =
      void (*)(const uint8_t*, const float*, int, const QuantizedRows&, int64_t, int, const Output&);
  constexpr Tiles kTiles[] = {tiles<1>, tiles<2>, tiles<3>, tiles<4>, tiles<kRows - 1>, tiles<kRows>};
  const int num_tiles = (num_rows + kRows - 1) / kRows;
  for (int i = 0, row = 0; i < num_tiles; ++i) {
    const int height = (num_rows - row) / (num_tiles - i);  // as even as can be
    kTiles[height - 1](panel, column_scales, k, x, row, column, out);
    row += height;
  }
}

void sum_groups(const int8_t* values, int n, int32_t* sums) {
  for (int i = 0; i < n; i += kGroupSize) {
    int32_t sum = 0;
    for (int j = 0; j < kGroupSize; ++j) sum += values[i + j];
    *sums++ = sum;
  }
}

}  // namespace pocketlm::POCKETLM_ISA
