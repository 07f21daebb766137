// The end of a matrix product: what happens to a tile of finished sums on their way to memory.
#pragma once

#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

static inline f32x sigmoid(f32x v) { return 1.0f / (1.0f + exp(-v)); }
static inline f32x tanh(f32x v) { return 1.0f - 2.0f / (exp(2.0f * v) + 1.0f); }

template <class Function>
static inline void apply(f32x* values, int n, const Function& function) {
  for (int i = 0; i < n; ++i) values[i] = function(values[i]);
}

// One copy for tiles of all shapes.
[[gnu::noinline]] static void activate(Activation activation, f32x* values, int n) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kGelu:
      return apply(values, n, [](f32x v) {
        f32x e;
        for (int i = 0; i < kLanes; ++i) e[i] = erff(v[i] * 0.70710678f);
        return 0.5f * v * (1.0f + e);
      });
    case Activation::kGeluTanh:
      // v / 2 * (1 + tanh(u)) = v * sigmoid(2 u): one division
      return apply(values, n, [](f32x v) { return v * sigmoid(1.59576912f * (v + 0.044715f * v * v * v)); });
    case Activation::kQuickGelu:
      return apply(values, n, [](f32x v) { return v * sigmoid(1.702f * v); });
    case Activation::kRelu:
      return apply(values, n, [](f32x v) { return max(v, f32x{}); });
    case Activation::kReluSquared:
      return apply(values, n, [](f32x v) { return max(v, f32x{}) * max(v, f32x{}); });
    case Activation::kSigmoid:
      return apply(values, n, [](f32x v) { return sigmoid(v); });
    case Activation::kSilu:
      return apply(values, n, [](f32x v) { return v * sigmoid(v); });
    case Activation::kTanh:
      return apply(values, n, [](f32x v) { return tanh(v); });
  }
}

static inline void put(f32x v, float* place, int left, Combine combine) {
  if (left <= 0) return;
  const bool whole = left >= kLanes;
  if (combine != Combine::kStore) {
    const f32x there = whole ? load(place) : load_some(place, left, 0.0f);
    v = combine == Combine::kAdd ? there + v : there * v;
  }
  if (whole)
    store(place, v);
  else
    store_some(place, v, left);
}

// product(r, v): the sums of row `row` + r and of the kLanes columns from column(v) on.
// All products leave their registers before anything else happens: the loops that follow are then loops,
// and the compiler keeps the sums of a tile in registers, as nothing takes one by an index.
template <int kNumRows, int kVectors, class Column, class Product>
static inline void finish(Output out, int64_t row, const Column& column, const Product& product) {
  f32x values[kNumRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kNumRows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) values[r][v] = product(r, v) + load(out.bias + column(v));
  if (out.activation != Activation::kNone) activate(out.activation, values[0], kNumRows * kVectors);
  for (int r = 0; r < kNumRows; ++r) {
    float* place = out.data + (row + r) * out.stride;
    for (int v = 0; v < kVectors; ++v)
      put(values[r][v], place + column(v), out.num_columns - column(v), out.combine);
  }
}

}  // namespace pocketlm::POCKETLM_ISA
