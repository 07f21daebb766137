// Rows times one panel of a weight matrix, 8-bit weights and activations.
//
//   out[t, n] = row_scale[t] * column_scale[n] * (sum over k of x[t, k] * (panel[k, n] - 128))
//
// Weights are stored plus 128, as x86's dot-product instruction wants one side unsigned; what that adds is
// 128 times the sum of the row, known beforehand. The sums are integers, so their order does not matter.
// Cost: K bytes of weights per column, read once for every kRows rows.
#include "dot_i8.h"
#include "finish.h"
#include "prefetch.h"
#include "quantize.h"
#if defined(__AMX_INT8__)
#include "matmul_i8_amx.h"
#endif

namespace pocketlm::POCKETLM_ISA {

// In tiles that are two vectors wide, with what is multiplied, they have the registers to themselves.
constexpr int kRows = sizeof(Weights) > sizeof(Sums) ? 5 : 6;

// How many vectors of columns a tile of so many rows is wide: its sums take three of four registers at most.
constexpr int width(int num_rows) {
  int vectors = kPanelColumns / kLanes;
  while (num_rows * vectors * sizeof(Sums) / sizeof(i32x) > kRegisters * 3 / 4) vectors /= 2;
  return vectors;
}

template <int kNumRows, int kVectors, bool kAlone>
static void tile(const uint8_t* panel, const float* column_scales, int k, const QuantizedRows& x, int64_t row,
                 int column, int first, Prefetch ahead, const Output& out) {
  Sums sums[kNumRows][kVectors] = {};
  const auto* values = values_of(x) + row * x.stride;
#pragma GCC unroll 4  // a core's other thread takes half of its turns: what is no product should be little
  for (int i = 0; i < k; i += 4) {
    ahead.step<kVectors * kLanes * 4, kAlone>();
    Weights weights[kVectors];
    for (int v = 0; v < kVectors; ++v)
      weights[v] = load_weights(panel + (i * kPanelColumns + (first + v * kLanes) * 4));
    for (int r = 0; r < kNumRows; ++r) {
      const Activations activations = load_activations(values + r * x.stride + i);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = add_products(sums[r][v], weights[v], activations);
    }
  }
  const auto column_of = [&](int v) { return column + first + v * kLanes; };
  finish<kNumRows, kVectors>(out, row, column_of, [&](int r, int v) {
    const i32x exact = total(sums[r][v]) - kExcess * x.sums[row + r];
    return __builtin_convertvector(exact, f32x) * (x.scales[row + r] * load(column_scales + column_of(v)));
  });
}

// A single tile that is low is wide, so that few passes read the weights in the order of memory.
void matmul_i8(const uint8_t* panel, const float* column_scales, int k, const QuantizedRows& x, int num_rows,
               int column, const Output& out) {
#if defined(__AMX_INT8__)
  if (num_rows > kFewRows) return amx_product(panel, column_scales, k, x, num_rows, column, out);
#endif
  using Tile = void (*)(const uint8_t*, const float*, int, const QuantizedRows&, int64_t, int, int, Prefetch,
                        const Output&);
  constexpr int kAll = width(kRows);
  constexpr Tile kSingle[] = {tile<1, width(1), true>, tile<2, width(2), true>,
                              tile<3, width(3), true>, tile<4, width(4), true>,
                              tile<5, width(5), true>, tile<kRows, width(kRows), true>};
  constexpr Tile kOfMany[] = {tile<1, kAll, false>, tile<2, kAll, false>, tile<3, kAll, false>,
                              tile<4, kAll, false>, tile<5, kAll, false>, tile<kRows, kAll, false>};
  const int num_tiles = (num_rows + kRows - 1) / kRows;
  const Tile* tiles = num_tiles == 1 ? kSingle : kOfMany;
  const int num_columns = kLanes * (num_tiles == 1 ? width(num_rows) : kAll);
  const int64_t num_steps = round_up(k, 4) / 4;
  Prefetch ahead =
      Prefetch::of(panel, num_steps, 4 * kPanelColumns, num_tiles * (kPanelColumns / num_columns));
  for (int first = 0; first < kPanelColumns; first += num_columns) {
    for (int i = 0, row = 0; i < num_tiles; ++i) {
      const int height = (num_rows - row) / (num_tiles - i);  // as even as can be
      tiles[height - 1](panel, column_scales, k, x, row, column, first, ahead, out);
      row += height;
      ahead.next += num_steps * ahead.bytes;
    }
  }
}

void quantize(const float* x, int n, int8_t* values, float* scale, int32_t* sum) {
  const int whole = n / kLanes * kLanes, left = n - whole;
  const Rounding rounding = rounding_of(x, n);
  *scale = rounding.scale;
  if (rounding.inverse == 0.0f) {
    std::memset(values, 0, round_up(n, kGroupSize));
    *sum = 0;
    return;
  }
  i32x sums = {};
  const auto put = [&](f32x v, int8_t* place, int width) {
    const i32x rounded = round_to_int(v * rounding.inverse);
    const i8x bytes = low_bytes(rounded);
    std::memcpy(place, &bytes, width);
    sums += rounded;
  };
  std::memset(values + whole, 0, round_up(n, kGroupSize) - whole);
  for (int i = 0; i < whole; i += kLanes) put(load(x + i), values + i, kLanes);
  if (left) put(load_some(x + whole, left, 0.0f), values + whole, left);
  *sum = pocketlm::POCKETLM_ISA::sum(sums);
}

void widen(const int8_t* values, int n, int16_t* wide) {
  typedef int8_t Bytes __attribute__((vector_size(16)));
  typedef int16_t Numbers __attribute__((vector_size(32)));
  typedef uint64_t Fours __attribute__((vector_size(32)));
  for (int i = 0; i < n; i += kGroupSize) {
    Bytes bytes;
    std::memcpy(&bytes, values + i, sizeof bytes);
    const Fours fours = reinterpret_cast<Fours>(__builtin_convertvector(bytes, Numbers));
    const Fours middle = fours ^ (fours >> 16);  // of each four, the second and third change places
    const Fours swapped = fours ^ (middle & 0xffff0000) ^ ((middle & 0xffff0000) << 16);
    std::memcpy(wide + i, &swapped, sizeof swapped);
  }
}

}  // namespace pocketlm::POCKETLM_ISA
