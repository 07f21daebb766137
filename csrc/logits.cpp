// Passes over a row of logits; the sampler is made of them.
#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

bool all_finite(const float* x, int n) {
  f32x poison = {};  // infinity * 0 and NaN * 0 are NaN, and NaN stays
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) poison = poison + load(x + i) * 0.0f;
  if (i < n) poison = poison + load_some(x + i, n - i, 0.0f) * 0.0f;
  return sum(poison) == 0.0f;
}

int argmax(const float* x, int n) {
  f32x top = broadcast(-INFINITY);
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) top = max(load(x + i), top);
  if (i < n) top = max(load_some(x + i, n - i, -INFINITY), top);
  const float peak = largest(top);
  for (i = 0; i < n; ++i)
    if (x[i] == peak) return i;
  return 0;
}

void shift_and_divide(const float* x, int n, float shift, float divisor, float* out) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, (load(x + i) - shift) / divisor);
  for (; i < n; ++i) out[i] = (x[i] - shift) / divisor;
}

void exp_above(const float* x, int n, float cutoff, float* out) {
  for (int i = 0; i < n; i += kLanes) {
    const int width = n - i < kLanes ? n - i : kLanes;
    const f32x v = width == kLanes ? load(x + i) : load_some(x + i, width, -INFINITY);
    const f32x kept = v >= cutoff ? exp(v) : broadcast(0.0f);
    if (width == kLanes)
      store(out + i, kept);
    else
      store_some(out + i, kept, width);
  }
}

}  // namespace pocketlm::POCKETLM_ISA
