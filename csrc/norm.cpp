// Layer norm and RMS norm of one row.
//
//   layer: (x - mean) / sqrt(variance + epsilon) * weight + bias
//   rms:    x / sqrt(mean of squares + epsilon) * weight + bias
//
// Two passes over the row for the variance: the one-pass formula cancels when the mean is large.
#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

void norm(Norm kind, const float* x, const float* weight, const float* bias, float epsilon, int n,
          float* out) {
  const int whole = n / kLanes * kLanes, left = n - whole;
  float mean = 0.0f;
  if (kind == Norm::kLayer) {
    f32x total = {};
    for (int i = 0; i < whole; i += kLanes) total += load(x + i);
    if (left) total += load_some(x + whole, left, 0.0f);
    mean = sum(total) / static_cast<float>(n);
  }
  f32x squares = {};
  for (int i = 0; i < whole; i += kLanes) {
    const f32x v = load(x + i) - mean;
    squares = fma(v, v, squares);
  }
  if (left) {
    const f32x v = load_some(x + whole, left, mean) - mean;
    squares = fma(v, v, squares);
  }
  const float scale = 1.0f / sqrtf(sum(squares) / static_cast<float>(n) + epsilon);
  for (int i = 0; i < whole; i += kLanes) {
    const f32x v = (load(x + i) - mean) * scale * load(weight + i);
    store(out + i, bias ? v + load(bias + i) : v);
  }
  for (int i = whole; i < n; ++i) {
    const float v = (x[i] - mean) * scale * weight[i];
    out[i] = bias ? v + bias[i] : v;
  }
}

}  // namespace pocketlm::POCKETLM_ISA
