// Rows times one panel of a weight matrix, float32.
//
//   out[t, n] = sum over k of x[t, k] * panel[k, n]
//
// A tile of kRows rows by kVectors vectors of columns is kept in registers while k runs from 0 to K, so
// each element is one chain of fused multiply-adds in the order of k. The tile's height changes how many
// chains run side by side and nothing in any of them.
// Cost: 4 K bytes of weights per column, read once for every kRows rows, from cache after the first.
#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

// Of 32 registers: 6 x 4 sums, 4 weights, 1 activation. Of 16: 6 x 2, 2, 1.
constexpr int kRows = 6;
constexpr int kVectors = kRegisters / 8;

template <int kNumRows>
static void tile(const float* panel, int k, const float* x, int64_t x_stride, int64_t row, int column,
                 int first, const Output& out) {
  f32x sums[kNumRows][kVectors] = {};
  for (int i = 0; i < k; ++i) {
    f32x weights[kVectors];
    for (int v = 0; v < kVectors; ++v) weights[v] = load(panel + i * kPanelColumns + first + v * kLanes);
    for (int r = 0; r < kNumRows; ++r) {
      const f32x activation = broadcast(x[r * x_stride + i]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(activation, weights[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kNumRows; ++r)
    for (int v = 0; v < kVectors; ++v) finish(sums[r][v], out, row + r, column + first + v * kLanes);
}

void matmul_f32(const float* panel, int k, const float* x, int64_t x_stride, int num_rows, int column,
                const Output& out) {
  using Tile = void (*)(const float*, int, const float*, int64_t, int64_t, int, int, const Output&);
  constexpr Tile kTiles[kRows] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
  for (int first = 0; first < kPanelColumns; first += kVectors * kLanes) {
    for (int row = 0; row < num_rows; row += kRows) {
      const int height = num_rows - row < kRows ? num_rows - row : kRows;
      kTiles[height - 1](panel, k, x + row * x_stride, x_stride, row, column, first, out);
    }
  }
}

}  // namespace pocketlm::POCKETLM_ISA
