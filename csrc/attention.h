// What attention over floats and attention over 8-bit numbers have in common.
#pragma once

#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

constexpr int kVectorsPerBlock = kBlockSize / kLanes;

// e^(score - peak) replaces one query's scores as `put(block, shares)` sees fit; 1 / their sum.
// The 16 scores of a block lie kStride from those of the block before it.
template <int kStride, class Put>
static float softmax(float* scores, int length, const Put& put) {
  const int num_blocks = round_up(length, kBlockSize) / kBlockSize;
  for (int p = length; p < num_blocks * kBlockSize; ++p)
    scores[(num_blocks - 1) * kStride + p % kBlockSize] = -INFINITY;
  f32x top = broadcast(-INFINITY);
  for (int b = 0; b < num_blocks; ++b)
    for (int v = 0; v < kBlockSize; v += kLanes) top = max(load(scores + b * kStride + v), top);
  const float peak = largest(top);
  f32x total = {};
  for (int b = 0; b < num_blocks; ++b) {
    f32x shares[kVectorsPerBlock];
    for (int v = 0; v < kVectorsPerBlock; ++v) {
      shares[v] = exp(load(scores + b * kStride + v * kLanes) - peak);
      total += shares[v];
    }
    put(b, shares);
  }
  return 1.0f / sum(total);
}

// kLanes entries of a head's output, from entry d on; none beyond its size.
static inline void store_entries(f32x entries, float* out, int d, int head_dim) {
  if (head_dim - d >= kLanes)
    store(out + d, entries);
  else if (head_dim > d)
    store_some(out + d, entries, head_dim - d);
}

// As many queries at a time as a pass takes, then half as many, and so on.
template <class Pass, int kQueries>
static void attend(const Query* queries, int num_queries, const HeadBlocks& head, int head_dim, float scale,
                   float* scratch) {
  int i = 0;
  for (; i + kQueries <= num_queries; i += kQueries)
    Pass::template attend<kQueries>(queries + i, head, head_dim, scale, scratch);
  if constexpr (kQueries > 1)
    attend<Pass, kQueries / 2>(queries + i, num_queries - i, head, head_dim, scale, scratch);
}

}  // namespace pocketlm::POCKETLM_ISA
