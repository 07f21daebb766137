// Passes over a row of logits; the sampler is made of them.
#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

Peak peak(const float* x, int n) {
  constexpr int kChains = 4;
  i32x lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  f32x top[kChains], poison[kChains] = {};  // infinity * 0 and NaN * 0 are NaN, and NaN stays
  i32x place[kChains] = {};
  for (f32x& each : top) each = broadcast(-INFINITY);
  for (int i = 0; i < n; i += kChains * kLanes) {
    for (int c = 0; c < kChains; ++c) {
      const int start = i + c * kLanes, left = n - start;
      if (left <= 0) break;
      const f32x v = left >= kLanes ? load(x + start) : load_some(x + start, left, x[start]);
      poison[c] = fma(v, f32x{}, poison[c]);
      const i32x better = v > top[c];
      top[c] = better ? v : top[c];
      place[c] = better ? lanes + start : place[c];
    }
  }
  float largest = -INFINITY;
  Peak found = {0, true};
  for (int c = 0; c < kChains; ++c) {
    found.all_finite = found.all_finite && sum(poison[c]) == 0.0f;
    for (int i = 0; i < kLanes; ++i) {
      if (top[c][i] < largest || (top[c][i] == largest && place[c][i] >= found.index)) continue;
      largest = top[c][i];
      found.index = place[c][i];
    }
  }
  return found;
}

int first_above(const float* x, int n, int start, float bound) {
  int i = start;
  for (; i + kLanes <= n; i += kLanes) {
    if (!any(load(x + i) > bound)) continue;
    while (!(x[i] > bound)) ++i;
    return i;
  }
  while (i < n && !(x[i] > bound)) ++i;
  return i;
}

int gather(const float* x, int n, float cutoff, float* out) {
  int count = 0, i = 0;
#if defined(__AVX512VNNI__)
  for (; i + kLanes <= n; i += kLanes) {
    const f32x v = load(x + i);
    const __mmask16 kept = _mm512_cmp_ps_mask(v, broadcast(cutoff), _CMP_GE_OQ);
    store(out + count, _mm512_maskz_compress_ps(kept, v));
    count += __builtin_popcount(kept);
  }
#endif
  for (; i < n; ++i) {
    out[count] = x[i];
    count += x[i] >= cutoff;
  }
  return count;
}

void shift_and_divide(const float* x, int n, float shift, float divisor, float* out) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, (load(x + i) - shift) / divisor);
  for (; i < n; ++i) out[i] = (x[i] - shift) / divisor;
}

void exp_above(const float* x, int n, float cutoff, float* out, float* sums) {
  for (int first = 0; first < n; first += kSumLength) {
    const int end = first + kSumLength < n ? first + kSumLength : n;
    f32x total = {};
    for (int i = first; i < end; i += kLanes) {
      const int width = end - i < kLanes ? end - i : kLanes;
      const f32x v = width == kLanes ? load(x + i) : load_some(x + i, width, -INFINITY);
      const f32x kept = v >= cutoff ? exp(v) : broadcast(0.0f);  // e^-infinity is 0
      total += kept;
      if (width == kLanes)
        store(out + i, kept);
      else
        store_some(out + i, kept, width);
    }
    *sums++ = sum(total);
  }
}

}  // namespace pocketlm::POCKETLM_ISA
