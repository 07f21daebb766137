// Rows times one panel of a weight matrix, float32.
//
//   out[t, n] = sum over k of x[t, k] * panel[k, n]
//
// A tile of kRows rows by kVectors vectors of columns is kept in registers while k runs from 0 to K, so
// each element is one chain of fused multiply-adds in the order of k. The tile's height changes how many
// chains run side by side and nothing in any of them.
// Cost: 4 K bytes of weights per column, read once for every kRows rows, from cache after the first.
#include "prefetch.h"
#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

// Of 32 registers: 6 x 4 sums, 4 weights, 1 activation. Of 16: 6 x 2, 2, 1.
constexpr int kRows = 6;
constexpr int kVectors = kRegisters / 8;

template <int kNumRows, bool kAlone>
static void tile(const float* panel, int k, const float* x, int64_t x_stride, int64_t row, int column,
                 int first, Prefetch ahead, const Output& out) {
  f32x sums[kNumRows][kVectors] = {};
#pragma GCC unroll 4
  for (int i = 0; i < k; ++i) {
    ahead.step<kVectors * kLanes * 4, kAlone>();
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
  using Tile = void (*)(const float*, int, const float*, int64_t, int64_t, int, int, Prefetch, const Output&);
  constexpr Tile kSingle[kRows] = {tile<1, true>, tile<2, true>, tile<3, true>,
                                   tile<4, true>, tile<5, true>, tile<6, true>};
  constexpr Tile kOfMany[kRows] = {tile<1, false>, tile<2, false>, tile<3, false>,
                                   tile<4, false>, tile<5, false>, tile<6, false>};
  constexpr int kColumns = kVectors * kLanes;
  const int num_tiles = (num_rows + kRows - 1) / kRows;
  const Tile* tiles = num_tiles == 1 ? kSingle : kOfMany;
  Prefetch ahead = Prefetch::of(panel, k, num_tiles, num_tiles * (kPanelColumns / kColumns));
  for (int first = 0; first < kPanelColumns; first += kColumns) {
    for (int i = 0, row = 0; i < num_tiles; ++i) {
      const int height = (num_rows - row) / (num_tiles - i);  // as even as can be
      tiles[height - 1](panel, k, x + row * x_stride, x_stride, row, column, first, ahead, out);
      row += height;
      ahead.next += k * ahead.bytes;
    }
  }
}

}  // namespace pocketlm::POCKETLM_ISA
