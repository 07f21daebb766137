// The product of matmul_i8.cpp on AMX tiles: 16 rows, 64 steps of k and 16 columns at a time.
//
// Sums are integers, so they are those of the other instruction sets, and of fewer rows. The panel's layout
// is what a tile of weights is: 4 steps of k in the bytes of each lane, 16 columns side by side.
#pragma once

#include "amx.h"
#include "dot_i8.h"
#include "finish.h"
#include "prefetch.h"

namespace pocketlm::POCKETLM_ISA {

constexpr int kFewRows = 4;  // that vectors multiply as fast as their weights come
constexpr int kTileColumns = 16, kPanelStride = 4 * kPanelColumns, kSquare = 2 * kTileRows;

using TileSums = int32_t[kSquare][kPanelColumns];  // what the tiles leave behind: [rows, columns]

// A square: 16 rows from `rows` on, 16 from `more_rows` on, and 32 columns: whatever is loaded is multiplied
// twice. Else a strip: 16 rows or fewer and the whole panel, in the order of memory.
template <bool kIsSquare>
static void multiply_tiles(const uint8_t* panel, int num_steps, const int8_t* rows, const int8_t* more_rows,
                           int64_t stride, Prefetch ahead, TileSums& sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int i = 0; i < num_steps; ++i) {
    _tile_loadd(4, rows, stride);
    ahead.step();
    _tile_loadd(6, panel, kPanelStride);
    _tile_dpbsud(0, 4, 6);
    ahead.step();
    _tile_loadd(7, panel + kTileBytes, kPanelStride);
    _tile_dpbsud(1, 4, 7);
    ahead.step();
    if constexpr (kIsSquare) {
      _tile_loadd(5, more_rows + i * kTileBytes, stride);
      _tile_dpbsud(2, 5, 6);
      ahead.step();
      _tile_dpbsud(3, 5, 7);
    } else {
      _tile_loadd(6, panel + 2 * kTileBytes, kPanelStride);
      _tile_dpbsud(2, 4, 6);
      ahead.step();
      _tile_loadd(7, panel + 3 * kTileBytes, kPanelStride);
      _tile_dpbsud(3, 4, 7);
    }
    panel += kTileRows * kPanelStride;
    rows += kTileBytes;
  }
  int32_t* second = kIsSquare ? sums[kTileRows] : sums[0] + 2 * kTileColumns;
  _tile_stored(0, sums[0], sizeof *sums);
  _tile_stored(1, sums[0] + kTileColumns, sizeof *sums);
  _tile_stored(2, second, sizeof *sums);
  _tile_stored(3, second + kTileColumns, sizeof *sums);
}

struct AmxProduct {
  const uint8_t* panel;
  const float* column_scales;
  int k;
  const QuantizedRows& x;
  int column;
  const Output& out;

  // Steps of k beyond the last 64, one after another: most matrices have none.
  i32x rest(int row, int panel_column) const {
    i32x sum = {};
    for (int i = k / kTileBytes * kTileBytes; i < k; i += 4)
      sum = add_products(sum, load_weights(panel + (i * kPanelColumns + panel_column * 4)),
                         load_activations(x.values + row * x.stride + i));
    return sum;
  }

  template <int kNumRows, int kVectors>
  void finish_rows(const int32_t (*sums)[kPanelColumns], int row, int first) const {
    const auto column_of = [&](int v) { return column + first + v * kLanes; };
    finish<kNumRows, kVectors>(out, row, column_of, [&](int r, int v) {
      i32x sum;
      std::memcpy(&sum, sums[r] + v * kLanes, sizeof sum);
      if (k % kTileBytes) sum += rest(row + r, first + v * kLanes);
      sum -= kExcess * x.sums[row + r];
      return __builtin_convertvector(sum, f32x) * (x.scales[row + r] * load(column_scales + column_of(v)));
    });
  }

  // So many rows from `row` on, whose sums begin at `sums`, and kVectors vectors of columns from `first` on.
  template <int kVectors>
  void finish_tile(const int32_t (*sums)[kPanelColumns], int row, int num_rows, int first) const {
    constexpr int kTogether = 4;
    int r = 0;
    for (; r + kTogether <= num_rows; r += kTogether)
      finish_rows<kTogether, kVectors>(sums + r, row + r, first);
    for (; r < num_rows; ++r) finish_rows<1, kVectors>(sums + r, row + r, first);
  }

  void multiply(int num_rows) const {
    alignas(kTileBytes) TileSums sums;
    const Tiles tiles(smaller(num_rows, kTileRows));
    const int num_steps = k / kTileBytes, num_tiles = (num_rows + kTileRows - 1) / kTileRows;
    // The last tile begins before the one before it ends, if it must; its first rows are skipped.
    const auto start_of = [&](int tile) {
      return tile == 0 ? 0 : smaller(tile * kTileRows, num_rows - kTileRows);
    };
    const auto rows_of = [&](int tile) { return x.values + start_of(tile) * x.stride; };
    const int num_paired = num_tiles / 2 * 2;
    constexpr int kPartsOfStep = 4;
    Prefetch ahead = Prefetch::of(panel, int64_t{kPartsOfStep} * num_steps,
                                  kTileRows * kPanelStride / kPartsOfStep, num_paired + num_tiles % 2);
    for (int first = 0; num_paired > 0 && first < kPanelColumns; first += 2 * kTileColumns) {
      for (int tile = 0; tile < num_paired; tile += 2) {
        const int row = tile * kTileRows, next_row = row + kTileRows, skipped = next_row - start_of(tile + 1);
        multiply_tiles<true>(panel + first * 4, num_steps, rows_of(tile), rows_of(tile + 1), x.stride, ahead,
                             sums);
        ahead.next += kPartsOfStep * num_steps * ahead.bytes;
        finish_tile<2>(sums, row, kTileRows, first);
        finish_tile<2>(sums + kTileRows + skipped, next_row, kTileRows - skipped, first);
      }
    }
    if (num_paired < num_tiles) {
      const int row = num_paired * kTileRows, skipped = row - start_of(num_paired);
      multiply_tiles<false>(panel, num_steps, rows_of(num_paired), nullptr, x.stride, ahead, sums);
      finish_tile<kPanelColumns / kLanes>(sums + skipped, row, num_rows - row, 0);
    }
  }
};

static void amx_product(const uint8_t* panel, const float* column_scales, int k, const QuantizedRows& x,
                        int num_rows, int column, const Output& out) {
  AmxProduct{panel, column_scales, k, x, column, out}.multiply(num_rows);
}

}  // namespace pocketlm::POCKETLM_ISA
