// Rows times one panel of a weight matrix, float32 or bfloat16 weights.
//
//   out[t, n] = sum over k of x[t, k] * panel[k, n]
//
// A tile of kRows rows by kVectors vectors of columns is kept in registers while k runs from 0 to K, so
// each element is one chain of fused multiply-adds in the order of k. The tile's height changes how many
// chains run side by side and nothing in any of them. bfloat16 weights are exact in float32. A processor that
// multiplies bfloat16 wants the activations in it, too; elsewhere they stay as they are.
// Cost: 4 K or 2 K bytes of weights per column, read once for every kRows rows, from cache after the first.
#include "finish.h"
#include "prefetch.h"

namespace pocketlm::POCKETLM_ISA {

constexpr int kVectors = kRegisters / 8;

// What a tile does in one step, in which K goes on by kDepth, or by what is left of it.
struct Float32 {
  using Weight = float;
  using Activation = float;
  static constexpr int kDepth = 1;
  static constexpr int kRows = 6;  // of 32 registers: 6 x 4 sums, 4 weights, 1 activation; of 16: 6 x 2, 2, 1
  template <int kNumRows>
  static inline void add(const float* panel, const float* x, int64_t x_stride, int,
                         f32x (&sums)[kNumRows][kVectors]) {
    f32x weights[kVectors];
    for (int v = 0; v < kVectors; ++v) weights[v] = load(panel + v * kLanes);
    for (int r = 0; r < kNumRows; ++r) {
      const f32x activation = broadcast(x[r * x_stride]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(activation, weights[v], sums[r][v]);
    }
  }
};

struct BFloat16 {
  using Weight = uint16_t;
  static constexpr int kDepth = 2;
  static constexpr int kRows = kRegisters == 32 ? 6 : 4;  // the mask and the pairs need registers, too
#if defined(__AVX512BF16__)
  using Activation = uint16_t;
  template <int kNumRows>
  static inline void add(const uint16_t* panel, const uint16_t* x, int64_t x_stride, int,
                         f32x (&sums)[kNumRows][kVectors]) {
    u32x weights[kVectors];
    for (int v = 0; v < kVectors; ++v) std::memcpy(&weights[v], panel + v * 2 * kLanes, sizeof weights[v]);
    for (int r = 0; r < kNumRows; ++r) {
      uint32_t pair;
      std::memcpy(&pair, x + r * x_stride, sizeof pair);
      const __m512bh activations = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(pair)));
      for (int v = 0; v < kVectors; ++v)
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], reinterpret_cast<__m512bh>(weights[v]), activations);
    }
  }
#else
  // A bfloat16 is the upper half of a float32: a shift and a mask make two vectors of one.
  using Activation = float;
  template <int kNumRows>
  static inline void add(const uint16_t* panel, const float* x, int64_t x_stride, int depth,
                         f32x (&sums)[kNumRows][kVectors]) {
    for (int half = 0; half < depth; ++half) {
      f32x weights[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        u32x pairs;
        std::memcpy(&pairs, panel + v * 2 * kLanes, sizeof pairs);
        weights[v] = reinterpret_cast<f32x>(half ? pairs & 0xffff0000 : pairs << 16);
      }
      for (int r = 0; r < kNumRows; ++r) {
        const f32x activation = broadcast(x[r * x_stride + half]);
        for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(activation, weights[v], sums[r][v]);
      }
    }
  }
#endif
};

template <class Format, int kNumRows, bool kAlone>
static void tile(const typename Format::Weight* panel, int k, const typename Format::Activation* x,
                 int64_t x_stride, int64_t row, int column, int first, Prefetch ahead, const Output& out) {
  constexpr int kDepth = Format::kDepth;
  f32x sums[kNumRows][kVectors] = {};
#pragma GCC unroll 4
  for (int i = 0; i + kDepth <= k; i += kDepth) {
    ahead.step<kVectors * kLanes * kDepth * sizeof(*panel), kAlone>();
    Format::template add<kNumRows>(panel + i * kPanelColumns + first * kDepth, x + i, x_stride, kDepth, sums);
  }
  if (const int left = k % kDepth) {
    const int i = k - left;
    Format::template add<kNumRows>(panel + i * kPanelColumns + first * kDepth, x + i, x_stride, left, sums);
  }
  finish<kNumRows, kVectors>(
      out, row, [&](int v) { return column + first + v * kLanes; }, [&](int r, int v) { return sums[r][v]; });
}

template <class Format>
static void multiply(const typename Format::Weight* panel, int k, const typename Format::Activation* x,
                     int64_t x_stride, int num_rows, int column, const Output& out) {
  using Tile = decltype(&tile<Format, 1, true>);
  constexpr int kRows = Format::kRows;
  constexpr Tile kSingle[] = {tile<Format, 1, true>, tile<Format, 2, true>, tile<Format, 3, true>,
                              tile<Format, 4, true>, tile<Format, 5, true>, tile<Format, kRows, true>};
  constexpr Tile kOfMany[] = {tile<Format, 1, false>, tile<Format, 2, false>, tile<Format, 3, false>,
                              tile<Format, 4, false>, tile<Format, 5, false>, tile<Format, kRows, false>};
  constexpr int kColumns = kVectors * kLanes;
  const int num_tiles = (num_rows + kRows - 1) / kRows;
  const Tile* tiles = num_tiles == 1 ? kSingle : kOfMany;
  const int64_t num_steps = round_up(k, Format::kDepth) / Format::kDepth;
  Prefetch ahead = Prefetch::of(panel, num_steps, kPanelColumns * Format::kDepth * sizeof(*panel),
                                num_tiles * (kPanelColumns / kColumns));
  for (int first = 0; first < kPanelColumns; first += kColumns) {
    for (int i = 0, row = 0; i < num_tiles; ++i) {
      const int height = (num_rows - row) / (num_tiles - i);  // as even as can be
      tiles[height - 1](panel, k, x + row * x_stride, x_stride, row, column, first, ahead, out);
      row += height;
      ahead.next += num_steps * ahead.bytes;
    }
  }
}

void matmul_f32(const float* panel, int k, const float* x, int64_t x_stride, int num_rows, int column,
                const Output& out) {
  multiply<Float32>(panel, k, x, x_stride, num_rows, column, out);
}

void matmul_bf16(const uint16_t* panel, int k, const void* x, int64_t x_stride, int num_rows, int column,
                 const Output& out) {
  multiply<BFloat16>(panel, k, static_cast<const BFloat16::Activation*>(x), x_stride, num_rows, column, out);
}

#if defined(__AVX512BF16__)
void round_bf16(const float* x, int n, uint16_t* rounded) {
  for (int i = 0; i < n; ++i) rounded[i] = float_to_bfloat16(x[i]);
  if (n % 2) rounded[n] = 0;
}
#endif

}  // namespace pocketlm::POCKETLM_ISA
