// Attention of the queries of one head over its paged keys and values, in floats of 32 or 16 bits.
//
//   scores[p] = scale * sum over d of q[d] * K[p][d]      p = 0 to length - 1
//   out[d]    = sum over p of softmax(scores)[p] * V[p][d]
//
// Keys lie transposed in their blocks, so that the scores of 16 positions are computed side by side and
// each is one chain in the order of d; the values are summed in the order of p. Neither depends on where
// a prompt was cut into chunks, nor on the queries beside this one.
//
// Cost: 2 * D' * bytes per position, read once for up to kMaxQueries queries. A single query (decode) waits
// for memory, so it asks for its values while it reads the keys, and for the keys of the next head, which
// lie behind its own, while it reads the values.
#include "attention.h"

namespace pocketlm::POCKETLM_ISA {

constexpr int kSums = kRegisters / 2;  // vectors that fit in registers beside the rest
constexpr int kTallest = kLanes / 2;   // queries in one pass
static_assert(kTallest <= kMaxQueries);

template <class Element>
static const Element* keys_of(const HeadBlocks& head, int block) {
  return reinterpret_cast<const Element*>(head.keys + head.block_table[block] * head.block_stride);
}

template <class Element>
static const Element* values_of(const HeadBlocks& head, int block) {
  return reinterpret_cast<const Element*>(head.values + head.block_table[block] * head.block_stride);
}

// Scores of kBlocks blocks at once, [block][query][16]: their chains are independent and hide each other's
// latency.
template <class Element, int kQueries, int kBlocks>
static void score(const Query* queries, const HeadBlocks& head, int block, int head_dim, float scale,
                  float* scores) {
  f32x sums[kQueries][kBlocks][kVectorsPerBlock] = {};
  const Element *keys[kBlocks], *values[kBlocks];
  for (int b = 0; b < kBlocks; ++b) {
    keys[b] = keys_of<Element>(head, block + b);
    values[b] = values_of<Element>(head, block + b);
  }
#pragma GCC unroll 4
  for (int d = 0; d < head_dim; ++d) {
    for (int b = 0; b < kBlocks; ++b) {
      if (kQueries == 1) __builtin_prefetch(values[b] + d * kBlockSize);
      for (int v = 0; v < kVectorsPerBlock; ++v) {
        const f32x key = load(keys[b] + d * kBlockSize + v * kLanes);
        for (int i = 0; i < kQueries; ++i)
          sums[i][b][v] = fma(broadcast(queries[i].values[d]), key, sums[i][b][v]);
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b)
    for (int i = 0; i < kQueries; ++i)
      for (int v = 0; v < kVectorsPerBlock; ++v)
        store(scores + ((block + b) * kQueries + i) * kBlockSize + v * kLanes, sums[i][b][v] * scale);
}

// kVectors vectors of the outputs, from entry d on. No query touches a value beyond its own length: what
// lies there may be anything, and not even its product with 0 is safe.
template <class Element, int kQueries, int kVectors>
static void mix(const Query* queries, const HeadBlocks& head, int shortest, int longest, int head_dim, int d,
                const float* shares, const float* inverse_totals) {
  const int width = padded_head_dim(head_dim);
  f32x sums[kQueries][kVectors] = {};
  for (int first = 0; first < longest; first += kBlockSize, shares += kQueries * kBlockSize) {
    const Element* values = values_of<Element>(head, first / kBlockSize) + d;
    const Element* next_keys = keys_of<Element>(head, first / kBlockSize) + kBlockSize * width + d;
    const int end = smaller(kBlockSize, shortest - first);
    int p = 0;
#pragma GCC unroll 4
    for (; p < end; ++p) {
      f32x value[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        if (kQueries == 1) __builtin_prefetch(next_keys + p * width + v * kLanes);
        value[v] = load(values + p * width + v * kLanes);
      }
      for (int i = 0; i < kQueries; ++i) {
        const f32x share = broadcast(shares[i * kBlockSize + p]);
        for (int v = 0; v < kVectors; ++v) sums[i][v] = fma(share, value[v], sums[i][v]);
      }
    }
    if (kQueries == 1 || p == kBlockSize) continue;
    for (int i = 0; i < kQueries; ++i) {  // those that go on where the shortest ended
      for (int q = p; q < kBlockSize && first + q < queries[i].length; ++q) {
        const f32x share = broadcast(shares[i * kBlockSize + q]);
        for (int v = 0; v < kVectors; ++v)
          sums[i][v] = fma(share, load(values + q * width + v * kLanes), sums[i][v]);
      }
    }
  }
  for (int i = 0; i < kQueries; ++i)
    for (int v = 0; v < kVectors; ++v)
      store_entries(sums[i][v] * inverse_totals[i], queries[i].out, d + v * kLanes, head_dim);
}

template <class Element>
struct FloatPass {
  template <int kQueries>
  static void attend(const Query* queries, const HeadBlocks& head, int head_dim, float scale, float* scores) {
    int shortest = queries[0].length, longest = shortest;
    for (int i = 1; i < kQueries; ++i) {
      const int length = queries[i].length;
      shortest = length < shortest ? length : shortest;
      longest = length > longest ? length : longest;
    }
    const int num_blocks = round_up(longest, kBlockSize) / kBlockSize;
    constexpr int kChains = kSums / kQueries;
    constexpr int kBlocks = kChains < kVectorsPerBlock ? 1 : smaller(4, kChains / kVectorsPerBlock);
    int block = 0;
    for (; block + kBlocks <= num_blocks; block += kBlocks)
      score<Element, kQueries, kBlocks>(queries, head, block, head_dim, scale, scores);
    for (; block < num_blocks; ++block)
      score<Element, kQueries, 1>(queries, head, block, head_dim, scale, scores);

    constexpr int kStride = kQueries * kBlockSize;
    float inverse_totals[kQueries];
    for (int i = 0; i < kQueries; ++i) {
      float* own = scores + i * kBlockSize;
      inverse_totals[i] = softmax<kStride>(own, queries[i].length, [&](int b, const f32x* shares) {
        std::memcpy(own + b * kStride, shares, kBlockSize * sizeof(float));
      });
    }

    constexpr int kVectors = smaller(4, kChains);
    int d = 0;
    for (; d + kVectors * kLanes <= padded_head_dim(head_dim); d += kVectors * kLanes)
      mix<Element, kQueries, kVectors>(queries, head, shortest, longest, head_dim, d, scores, inverse_totals);
    for (; d < head_dim; d += kLanes)
      mix<Element, kQueries, 1>(queries, head, shortest, longest, head_dim, d, scores, inverse_totals);
  }
};

void attend_f32(const Query* queries, int num_queries, const HeadBlocks& head, int head_dim, float scale,
                float* scratch) {
  attend<FloatPass<float>, kTallest>(queries, num_queries, head, head_dim, scale, scratch);
}

void attend_f16(const Query* queries, int num_queries, const HeadBlocks& head, int head_dim, float scale,
                float* scratch) {
  attend<FloatPass<uint16_t>, kTallest>(queries, num_queries, head, head_dim, scale, scratch);
}

template <class Element>
static void keep(const float* key, const float* value, int head_dim, int row, uint8_t* key_block,
                 uint8_t* value_block) {
  Element* keys = reinterpret_cast<Element*>(key_block);
  Element* values = reinterpret_cast<Element*>(value_block) + row * padded_head_dim(head_dim);
  for (int d = 0; d < head_dim; d += kLanes) {
    const int width = smaller(kLanes, head_dim - d);
    Element entries[kLanes];
    store(entries, width == kLanes ? load(key + d) : load_some(key + d, width, 0.0f));
    for (int i = 0; i < width; ++i) keys[(d + i) * kBlockSize + row] = entries[i];
    // What a value row has beyond the head's size is 0 and stays so.
    store(values + d, width == kLanes ? load(value + d) : load_some(value + d, width, 0.0f));
  }
}

void keep_f32(const float* key, const float* value, int head_dim, int row, uint8_t* keys, uint8_t* values) {
  keep<float>(key, value, head_dim, row, keys, values);
}

void keep_f16(const float* key, const float* value, int head_dim, int row, uint8_t* keys, uint8_t* values) {
  keep<uint16_t>(key, value, head_dim, row, keys, values);
}

}  // namespace pocketlm::POCKETLM_ISA
