// Attention of the queries of one head over its paged keys and values, all of them in 8 bits.
//
//   scores[p]  = scale * query_scale * key_scales[p] * sum over d of q[d] * K[p][d]
//   weights[p] = e^(scores[p] - peak) * value_scales[p], then 8 bits and one scale for each block
//   out[d]     = sum over blocks b of scale[b] * (sum over p in b of weights[p] * V[p][d]) / sum of e^...
//
// The sums of products are integers, those over blocks are floats in the order of the blocks: nothing depends
// on where a prompt was cut into chunks, nor on the queries beside this one. Weights have a scale in each
// block, and not one in all, because the few positions that get nearly all attention would leave nothing to
// the others.
//
// Keys and values are stored plus 128. For keys, what that adds is 128 times the sum of the query. For values
// it is 128 times the sum of the weights.
//
// Cost: 2 * (D' + 4) bytes per position, read once for up to kTallest queries. A single query (decode) asks
// for its values and for the next head's keys ahead, as attention over floats does.
#include "attention.h"
#include "dot_i8.h"
#include "quantize.h"

namespace pocketlm::POCKETLM_ISA {

constexpr int kSums = kRegisters / 2 * sizeof(i32x) / sizeof(Sums);  // that fit in registers beside the rest
constexpr int kTallest = kSums < kVectorsPerBlock ? 1 : smaller(kMaxQueries, kSums / kVectorsPerBlock);
constexpr int kScale = kBlockSize / 4;  // place of a block's scale behind its 8-bit weights, in floats

// The block's 16 scales lie behind its numbers.
static void load_scales(const uint8_t* block, int head_dim, f32x* scales) {
  std::memcpy(scales, block + kBlockSize * padded_head_dim(head_dim), kBlockSize * sizeof(float));
}

// Scores of kBlocks blocks at once, [block][query][16].
template <int kQueries, int kBlocks>
static void score(const QuantizedRows& queries, const HeadBlocks& head, int block, int head_dim, float scale,
                  float* scores) {
  Sums sums[kQueries][kBlocks][kVectorsPerBlock] = {};
  const uint8_t *keys[kBlocks], *values[kBlocks];
  for (int b = 0; b < kBlocks; ++b) {
    const int64_t offset = head.block_table[block + b] * head.block_stride;
    keys[b] = head.keys + offset;
    values[b] = head.values + offset;
  }
  const int width = static_cast<int>(queries.stride);
#pragma GCC unroll 4
  for (int d = 0; d < width; d += 4) {
    Weights key[kBlocks][kVectorsPerBlock];
    for (int b = 0; b < kBlocks; ++b) {
      if (kQueries == 1) __builtin_prefetch(values[b] + d * kBlockSize);
      for (int v = 0; v < kVectorsPerBlock; ++v)
        key[b][v] = load_weights(keys[b] + d * kBlockSize + v * kLanes * 4);
    }
    for (int i = 0; i < kQueries; ++i) {
      const Activations query = load_activations(queries.values + i * queries.stride + d);
      for (int b = 0; b < kBlocks; ++b)
        for (int v = 0; v < kVectorsPerBlock; ++v)
          sums[i][b][v] = add_products(sums[i][b][v], key[b][v], query);
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    if (kQueries == 1) __builtin_prefetch(values[b] + kBlockSize * width);
    f32x key_scales[kVectorsPerBlock];
    load_scales(keys[b], head_dim, key_scales);
    for (int i = 0; i < kQueries; ++i) {
      for (int v = 0; v < kVectorsPerBlock; ++v) {
        const i32x exact = total(sums[i][b][v]) - kExcess * queries.sums[i];
        store(scores + ((block + b) * kQueries + i) * kBlockSize + v * kLanes,
              __builtin_convertvector(exact, f32x) * (key_scales[v] * (queries.scales[i] * scale)));
      }
    }
  }
}

// The weights of one query in place of its scores: 16 bytes a block, then their scale. Blocks it does not
// attend to get zeros. `excess` is what kExcess adds to each entry of the output.
template <int kStride>
static float weigh(float* scores, int length, int num_blocks, const HeadBlocks& head, int head_dim,
                   float* excess) {
  f32x weight_sums = {};
  const float inverse_total = softmax<kStride>(scores, length, [&](int b, const f32x* shares) {
    f32x weights[kVectorsPerBlock];
    load_scales(head.values + head.block_table[b] * head.block_stride, head_dim, weights);
    i32x top = {};
    for (int v = 0; v < kVectorsPerBlock; ++v) {
      // Where no position is, the scale may be anything.
      weights[v] = shares[v] > 0.0f ? shares[v] * weights[v] : broadcast(0.0f);
      top = max(magnitude_bits(weights[v]), top);
    }
    const Rounding rounding = rounding_of(top);
    float* place = scores + b * kStride;
    for (int v = 0; v < kVectorsPerBlock; ++v) {
      const i32x rounded = round_to_int(weights[v] * rounding.inverse);
      const i8x bytes = low_bytes(rounded);
      std::memcpy(reinterpret_cast<int8_t*>(place) + v * kLanes, &bytes, sizeof bytes);
      if (kExcess)
        weight_sums = fma(__builtin_convertvector(rounded, f32x), broadcast(rounding.scale), weight_sums);
    }
    place[kScale] = rounding.scale;
  });
  for (int b = round_up(length, kBlockSize) / kBlockSize; b < num_blocks; ++b)
    std::memset(scores + b * kStride, 0, (kScale + 1) * sizeof(float));
  *excess = kExcess * sum(weight_sums);
  return inverse_total;
}

// kVectors vectors of the outputs, from entry d on.
template <int kQueries, int kVectors>
static void mix(const Query* queries, const HeadBlocks& head, int num_blocks, int head_dim, int d,
                const float* weights, const float* inverse_totals, const float* excess) {
  const int width = padded_head_dim(head_dim);
  f32x sums[kQueries][kVectors];
  for (int i = 0; i < kQueries; ++i)
    for (int v = 0; v < kVectors; ++v) sums[i][v] = broadcast(-excess[i]);
  for (int b = 0; b < num_blocks; ++b, weights += kQueries * kBlockSize) {
    const int64_t offset = head.block_table[b] * head.block_stride + d * 4;
    const uint8_t* values = head.values + offset;
    const uint8_t* next_keys = head.keys + offset + head_block_bytes(KVFormat::kInt8, head_dim);
    Sums products[kQueries][kVectors] = {};
    for (int p = 0; p < kBlockSize; p += 4) {
      Weights value[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        if (kQueries == 1) __builtin_prefetch(next_keys + p * width + v * kLanes * 4);
        value[v] = load_weights(values + p * width + v * kLanes * 4);
      }
      for (int i = 0; i < kQueries; ++i) {
        const int8_t* numbers = reinterpret_cast<const int8_t*>(weights + i * kBlockSize);
        const Activations weight = load_activations(numbers + p);
        for (int v = 0; v < kVectors; ++v) products[i][v] = add_products(products[i][v], value[v], weight);
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      const f32x scale = broadcast(weights[i * kBlockSize + kScale]);
      for (int v = 0; v < kVectors; ++v)
        sums[i][v] = fma(__builtin_convertvector(total(products[i][v]), f32x), scale, sums[i][v]);
    }
  }
  for (int i = 0; i < kQueries; ++i)
    for (int v = 0; v < kVectors; ++v)
      store_entries(sums[i][v] * inverse_totals[i], queries[i].out, d + v * kLanes, head_dim);
}

struct Int8Pass {
  template <int kQueries>
  static void attend(const Query* queries, const HeadBlocks& head, int head_dim, float scale,
                     float* scratch) {
    const int width = padded_head_dim(head_dim);
    int longest = 0;
    int8_t* numbers = reinterpret_cast<int8_t*>(scratch);  // [queries][D'], the scores behind them
    float scales[kQueries];
    int32_t number_sums[kQueries];
    for (int i = 0; i < kQueries; ++i) {
      longest = queries[i].length > longest ? queries[i].length : longest;
      quantize(queries[i].values, head_dim, numbers + i * width, scales + i, number_sums + i);
    }
    float* scores = scratch + kQueries * width / 4;
    const QuantizedRows rows = {numbers, width, scales, number_sums, nullptr, nullptr};
    const int num_blocks = round_up(longest, kBlockSize) / kBlockSize;
    constexpr int kBlocks = smaller(4, kSums / kQueries / kVectorsPerBlock);
    int block = 0;
    if constexpr (kBlocks > 1)
      for (; block + kBlocks <= num_blocks; block += kBlocks)
        score<kQueries, kBlocks>(rows, head, block, head_dim, scale, scores);
    for (; block < num_blocks; ++block) score<kQueries, 1>(rows, head, block, head_dim, scale, scores);

    float inverse_totals[kQueries], excess[kQueries];
    for (int i = 0; i < kQueries; ++i)
      inverse_totals[i] = weigh<kQueries * kBlockSize>(scores + i * kBlockSize, queries[i].length, num_blocks,
                                                       head, head_dim, excess + i);

    constexpr int kVectors = kSums / kQueries >= 8 ? 4 : 1;
    int d = 0;
    for (; d + kVectors * kLanes <= width; d += kVectors * kLanes)
      mix<kQueries, kVectors>(queries, head, num_blocks, head_dim, d, scores, inverse_totals, excess);
    for (; d < head_dim; d += kLanes)
      mix<kQueries, 1>(queries, head, num_blocks, head_dim, d, scores, inverse_totals, excess);
  }
};

void attend_i8(const Query* queries, int num_queries, const HeadBlocks& head, int head_dim, float scale,
               float* scratch) {
  attend<Int8Pass, kTallest>(queries, num_queries, head, head_dim, scale, scratch);
}

// The low byte of each number to byte `which` of its four. The other three stay as they are, and unread: a
// new page that is read before it is written faults twice, and the second time interrupts every core.
static void store_each_fourth(uint8_t* place, int which, i32x numbers) {
#if defined(__AVX512VNNI__)
  const __m512i bytes = reinterpret_cast<__m512i>(numbers << (8 * which));
  _mm512_mask_storeu_epi8(place, 0x1111111111111111 << which, bytes);
#else
  for (int i = 0; i < kLanes; ++i) place[4 * i + which] = static_cast<uint8_t>(numbers[i]);
#endif
}

// Calls put(d, numbers) for each kLanes numbers of x, 128 added as they are stored; their scale.
template <class Put>
static float keep_row(const float* x, int head_dim, const Put& put) {
  const Rounding rounding = rounding_of(x, head_dim);
  for (int d = 0; d < head_dim; d += kLanes) {
    const int left = head_dim - d;
    const f32x entries = left < kLanes ? load_some(x + d, left, 0.0f) : load(x + d);
    put(d, (rounding.inverse > 0.0f ? round_to_int(entries * rounding.inverse) : i32x{}) + 128);
  }
  return rounding.scale;
}

void keep_i8(const float* key, const float* value, int head_dim, int row, uint8_t* keys, uint8_t* values) {
  const int width = padded_head_dim(head_dim), scales = kBlockSize * width + 4 * row;
  const float key_scale = keep_row(key, head_dim, [&](int d, i32x numbers) {
    const i8x bytes = low_bytes(numbers);
    int32_t fours[kLanes / 4];
    std::memcpy(fours, &bytes, sizeof bytes);
    for (int i = 0; i < kLanes; i += 4) std::memcpy(keys + (d + i) * kBlockSize + row * 4, fours + i / 4, 4);
  });
  const float value_scale = keep_row(value, head_dim, [&](int d, i32x numbers) {
    store_each_fourth(values + (row / 4 * width + d) * 4, row % 4, numbers);
  });
  std::memcpy(keys + scales, &key_scale, 4);
  std::memcpy(values + scales, &value_scale, 4);
}

}  // namespace pocketlm::POCKETLM_ISA
