// Rows times one panel of a weight matrix, float32 or bfloat16 weights, float32 activations.
//
//   out[t, n] = sum over k of x[t, k] * panel[k, n]
//
// A tile of kRows rows by kVectors vectors of columns is kept in registers while k runs from 0 to K, so
// each element is one chain of fused multiply-adds in the order of k. The tile's height changes how many
// chains run side by side and nothing in any of them. bfloat16 weights are exact in float32: the products
// of a checkpoint that is stored so are those of float32.
// Cost: 4 K or 2 K bytes of weights per column, read once for every kRows rows, from cache after the first.
#include "finish.h"
#include "prefetch.h"

namespace pocketlm::POCKETLM_ISA {

// Of 32 registers: 6 x 4 sums, 4 weights, 1 activation. Of 16: 6 x 2, 2, 1.
constexpr int kRows = 6;
constexpr int kVectors = kRegisters / 8;

// The weights of one k that a tile multiplies with, and the columns they belong to.
struct Float32 {
  using Weight = float;
  static int column(int first, int v) { return first + v * kLanes; }
  static void load_row(const float* row, int first, f32x (&weights)[kVectors]) {
    for (int v = 0; v < kVectors; ++v) weights[v] = load(row + first + v * kLanes);
  }
};

// A bfloat16 is the upper half of a float32: a shift and a mask make two vectors of one.
struct BFloat16 {
  using Weight = uint16_t;
  static int column(int first, int v) { return first / 2 + v / 2 * kLanes + v % 2 * (kPanelColumns / 2); }
  static void load_row(const uint16_t* row, int first, f32x (&weights)[kVectors]) {
    for (int v = 0; v < kVectors; v += 2) {
      u32x pairs;
      std::memcpy(&pairs, row + first + v * kLanes, sizeof pairs);
      weights[v] = reinterpret_cast<f32x>(pairs << 16);
      weights[v + 1] = reinterpret_cast<f32x>(pairs & 0xffff0000);
    }
  }
};

template <class Format, int kNumRows, bool kAlone>
static void tile(const typename Format::Weight* panel, int k, const float* x, int64_t x_stride, int64_t row,
                 int column, int first, Prefetch ahead, const Output& out) {
  f32x sums[kNumRows][kVectors] = {};
#pragma GCC unroll 4
  for (int i = 0; i < k; ++i) {
    ahead.step<kVectors * kLanes * sizeof(*panel), kAlone>();
    f32x weights[kVectors];
    Format::load_row(panel + i * kPanelColumns, first, weights);
    for (int r = 0; r < kNumRows; ++r) {
      const f32x activation = broadcast(x[r * x_stride + i]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(activation, weights[v], sums[r][v]);
    }
  }
  finish<kNumRows, kVectors>(
      out, row, [&](int v) { return column + Format::column(first, v); },
      [&](int r, int v) { return sums[r][v]; });
}

template <class Format>
static void multiply(const typename Format::Weight* panel, int k, const float* x, int64_t x_stride,
                     int num_rows, int column, const Output& out) {
  using Tile = decltype(&tile<Format, 1, true>);
  constexpr Tile kSingle[kRows] = {tile<Format, 1, true>, tile<Format, 2, true>, tile<Format, 3, true>,
                                   tile<Format, 4, true>, tile<Format, 5, true>, tile<Format, 6, true>};
  constexpr Tile kOfMany[kRows] = {tile<Format, 1, false>, tile<Format, 2, false>, tile<Format, 3, false>,
                                   tile<Format, 4, false>, tile<Format, 5, false>, tile<Format, 6, false>};
  constexpr int kColumns = kVectors * kLanes;
  const int num_tiles = (num_rows + kRows - 1) / kRows;
  const Tile* tiles = num_tiles == 1 ? kSingle : kOfMany;
  Prefetch ahead = Prefetch::of(panel, k, kPanelColumns * sizeof(*panel), num_tiles,
                                num_tiles * (kPanelColumns / kColumns));
  for (int first = 0; first < kPanelColumns; first += kColumns) {
    for (int i = 0, row = 0; i < num_tiles; ++i) {
      const int height = (num_rows - row) / (num_tiles - i);  // as even as can be
      tiles[height - 1](panel, k, x + row * x_stride, x_stride, row, column, first, ahead, out);
      row += height;
      ahead.next += k * ahead.bytes;
    }
  }
}

void matmul_f32(const float* panel, int k, const float* x, int64_t x_stride, int num_rows, int column,
                const Output& out) {
  multiply<Float32>(panel, k, x, x_stride, num_rows, column, out);
}

void matmul_bf16(const uint16_t* panel, int k, const float* x, int64_t x_stride, int num_rows, int column,
                 const Output& out) {
  multiply<BFloat16>(panel, k, x, x_stride, num_rows, column, out);
}

}  // namespace pocketlm::POCKETLM_ISA
