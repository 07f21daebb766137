// Intel's matrix registers (AMX): eight tiles of at most 16 rows of 64 bytes, and products of whole tiles.
#pragma once

#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

constexpr int kTileRows = 16, kTileBytes = 64;

// Sums in tiles 0 to 3, of so many rows each; two tiles with rows to multiply, 4 and 5; what they meet in 6
// and 7. Loading it sets all tiles to zero.
struct alignas(64) TileShapes {
  uint8_t palette = 1, first_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t num_rows[16] = {};

  constexpr explicit TileShapes(int rows = kTileRows) {
    for (int i = 0; i < 8; ++i) {
      row_bytes[i] = kTileBytes;
      num_rows[i] = static_cast<uint8_t>(i < 6 ? rows : kTileRows);
    }
  }
};

struct AllTileShapes {
  TileShapes of[kTileRows + 1];
  constexpr AllTileShapes() {
    for (int rows = 1; rows <= kTileRows; ++rows) of[rows] = TileShapes(rows);
  }
};
constexpr AllTileShapes kTileShapes;

// Until its end this thread has tiles. A thread that leaves none behind is cheaper to switch from.
struct Tiles {
  explicit Tiles(int num_rows) { _tile_loadconfig(kTileShapes.of + num_rows); }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
};

}  // namespace pocketlm::POCKETLM_ISA
