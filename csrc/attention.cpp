// Attention of one query and one head over its paged keys and values.
//
//   scores[p] = scale * sum over d of q[d] * K[p][d]      p = 0 to length - 1
//   out[d]    = sum over p of softmax(scores)[p] * V[p][d]
//
// Keys lie transposed in their blocks, so that the scores of 16 positions are computed side by side and
// each is one chain in the order of d; the values are summed in the order of p. Neither depends on where
// a prompt was cut into chunks, nor on the queries beside this one.
// Cost: 2 * D' * bytes per position, read once per query head.
#include "simd.h"

namespace pocketlm::POCKETLM_ISA {

constexpr int kVectorsPerBlock = kBlockSize / kLanes;

// Scores of kBlocks blocks at once: their chains are independent and hide each other's latency.
template <int kBlocks, class Element>
static void score(const float* q, const HeadBlocks<Element>& head, int block, int head_dim, float scale,
                  float* scores) {
  f32x sums[kBlocks][kVectorsPerBlock] = {};
  const Element* keys[kBlocks];
  for (int b = 0; b < kBlocks; ++b) keys[b] = head.keys + head.block_table[block + b] * head.block_stride;
  for (int d = 0; d < head_dim; ++d) {
    const f32x query = broadcast(q[d]);
    for (int b = 0; b < kBlocks; ++b)
      for (int v = 0; v < kVectorsPerBlock; ++v)
        sums[b][v] = fma(query, load(keys[b] + d * kBlockSize + v * kLanes), sums[b][v]);
  }
  for (int b = 0; b < kBlocks; ++b)
    for (int v = 0; v < kVectorsPerBlock; ++v)
      store(scores + (block + b) * kBlockSize + v * kLanes, sums[b][v] * scale);
}

// kVectors vectors of the output, from entry d on.
template <int kVectors, class Element>
static void mix(const float* shares, const HeadBlocks<Element>& head, int length, int stride, int d,
                float inverse_total, float* out) {
  f32x sums[kVectors] = {};
  for (int p = 0; p < length; ++p) {
    const Element* value =
        head.values + head.block_table[p / kBlockSize] * head.block_stride + p % kBlockSize * stride + d;
    const f32x share = broadcast(shares[p]);
    for (int v = 0; v < kVectors; ++v) sums[v] = fma(share, load(value + v * kLanes), sums[v]);
  }
  for (int v = 0; v < kVectors; ++v) store(out + d + v * kLanes, sums[v] * inverse_total);
}

template <class Element>
static void attend(const float* q, const HeadBlocks<Element>& head, int head_dim, int length, float scale,
                   float* scores, float* out) {
  const int num_blocks = (length + kBlockSize - 1) / kBlockSize;
  int block = 0;
  for (; block + 4 <= num_blocks; block += 4) score<4>(q, head, block, head_dim, scale, scores);
  for (; block < num_blocks; ++block) score<1>(q, head, block, head_dim, scale, scores);
  const int padded = num_blocks * kBlockSize;
  for (int p = length; p < padded; ++p) scores[p] = -INFINITY;

  f32x top = broadcast(-INFINITY);
  for (int p = 0; p < padded; p += kLanes) top = max(load(scores + p), top);
  const float peak = largest(top);
  f32x total = {};
  for (int p = 0; p < padded; p += kLanes) {
    const f32x share = exp(load(scores + p) - peak);
    store(scores + p, share);
    total += share;
  }
  const float inverse_total = 1.0f / sum(total);

  const int width = padded_head_dim(head_dim);
  int d = 0;
  for (; d + 4 * kLanes <= width; d += 4 * kLanes) mix<4>(scores, head, length, width, d, inverse_total, out);
  for (; d < width; d += kLanes) mix<1>(scores, head, length, width, d, inverse_total, out);
}

void attend_f32(const float* q, const HeadBlocks<float>& head, int head_dim, int length, float scale,
                float* scores, float* out) {
  attend(q, head, head_dim, length, scale, scores, out);
}

void attend_f16(const float* q, const HeadBlocks<uint16_t>& head, int head_dim, int length, float scale,
                float* scores, float* out) {
  attend(q, head, head_dim, length, scale, scores, out);
}

}  // namespace pocketlm::POCKETLM_ISA
