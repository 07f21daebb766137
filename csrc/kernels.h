// The kernels that exist once for every instruction set, and the table through which they are called.
//
// Layouts
//   float32 panel   [K][64] float            64 columns of a weight matrix, zero past the last column
//   bfloat16 panel  [K / 2][64][2] uint16    the same, K padded with zeros to a multiple of 2
//   int8 panel      [K / 4][64][4] uint8     the same, value + 128, K padded with zeros to a multiple of 4
//   int4 panel      [K / 16][576] uint8      groups of 16: [2][64][4] bytes, then 64 scales in int8. Byte
//                                            [p][c][i] holds 8p + i in its low half, 8p + 4 + i in its high
//                                            half, value + 8. K padded with zeros to a multiple of 16
//   key block       [D'][16] per head        transposed: 16 positions side by side, one row per entry
//   value block     [16][D'] per head        D' is the head size rounded up to a multiple of 16
//   8-bit key block    [D' / 4][16][4] uint8     value + 128, then 16 scales in float32, one a position
//   8-bit value block  [16 / 4][D'][4] uint8     the same: 4 positions side by side
//
// Every output element is summed in one fixed order along K, whatever the number of rows beside it.
#pragma once

#include <cstdint>

namespace pocketlm {

constexpr int kPanelColumns = 64;
constexpr int kBlockSize = 16;  // positions in a KV block
constexpr int kMaxQueries = 8;  // that share one pass over keys and values
constexpr int kGroupSize = 16;  // steps of k with one scale, in 4-bit weights
constexpr int kGroupBytes = kPanelColumns * (kGroupSize / 2 + 1);  // of a panel

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int padded_head_dim(int head_dim) { return round_up(head_dim, kBlockSize); }

enum class KVFormat { kFloat32, kFloat16, kInt8 };  // of keys and values
constexpr int kNumKVFormats = 3;
// What one head's keys, or its values, take in a block.
constexpr int64_t head_block_bytes(KVFormat format, int head_dim) {
  const int64_t width = padded_head_dim(head_dim);
  return kBlockSize * (format == KVFormat::kInt8      ? width + 4
                       : format == KVFormat::kFloat16 ? 2 * width
                                                      : 4 * width);
}

enum class Norm { kLayer, kRms };
enum class Activation { kNone, kGelu, kGeluTanh, kQuickGelu, kRelu, kReluSquared, kSigmoid, kSilu, kTanh };
enum class Combine { kStore, kAdd, kMultiply };  // how a result meets what is already in its place

// Where the result of a matrix product goes, and what happens to it on the way:
// data = combine(data, activation(product + bias)).
struct Output {
  float* data;  // [rows, stride]
  int64_t stride;
  int num_columns;
  const float* bias;  // [num_columns rounded up to a panel]
  Activation activation = Activation::kNone;
  Combine combine = Combine::kStore;
};

// Rows of 8-bit activations: x is about values * scales.
struct QuantizedRows {
  const int8_t* values;       // [rows, stride]
  int64_t stride;             // K rounded up to a multiple of 16
  const float* scales;        // [rows]
  const int32_t* sums;        // [rows], of the values
  const int32_t* group_sums;  // [rows, stride / 16], only with 4-bit weights
  const int16_t* wide;        // [rows, stride], only with 8-bit weights and where the kernels have widen
};

// Keys and values of one layer and one key-value head, block by block.
struct HeadBlocks {
  const uint8_t *keys, *values;  // of block 0
  int64_t block_stride;          // bytes from one block to the next
  const int32_t* block_table;
};

// One head of one token: it attends to the first `length` positions.
struct Query {
  const float* values;  // [head_dim]
  int length;
  float* out;  // [head_dim]
};

struct AttentionKernels {
  // One position's key and value of one head into row `row` of a block.
  void (*keep)(const float* key, const float* value, int head_dim, int row, uint8_t* keys, uint8_t* values);
  // out = softmax(scale * q K) V of each query. `scratch` has room for kMaxQueries times D' and the longest
  // length, rounded up to a block.
  void (*attend)(const Query* queries, int num_queries, const HeadBlocks& blocks, int head_dim, float scale,
                 float* scratch);
};

constexpr int kSumLength = 256;  // weights of tokens that are summed up together

struct Peak {
  int index;  // of the largest entry, the first of equals
  bool all_finite;
};

struct Kernels {
  const char* isa;

  // Rows x [num_rows, k] times one panel; `column` is the panel's first. For matmul_bf16, x as round_bf16
  // leaves it, if there is one.
  void (*matmul_f32)(const float* panel, int k, const float* x, int64_t x_stride, int num_rows, int column,
                     const Output& out);
  void (*matmul_bf16)(const uint16_t* panel, int k, const void* x, int64_t x_stride, int num_rows, int column,
                      const Output& out);

  void (*matmul_i8)(const uint8_t* panel, const float* column_scales, int k, const QuantizedRows& x,
                    int num_rows, int column, const Output& out);
  void (*matmul_i4)(const uint8_t* panel, const float* column_scales, int k, const QuantizedRows& x,
                    int num_rows, int column, const Output& out);

  // One row of n. `bias` may be null.
  void (*norm)(Norm kind, const float* x, const float* weight, const float* bias, float epsilon, int n,
               float* out);
  // One row of n to bfloat16, to nearest, ties to even. Pads to a multiple of 2. Null where bfloat16 weights
  // are multiplied with floats.
  void (*round_bf16)(const float* x, int n, uint16_t* rounded);
  // One row of n to 8 bits; a row with a NaN or an infinity gets a scale of NaN. Pads to a multiple of 16.
  void (*quantize)(const float* x, int n, int8_t* values, float* scale, int32_t* sum);
  // The values of a row that quantize made, in 16 bits, of each 4 the even ones first. Null where products
  // are made of bytes.
  void (*widen)(const int8_t* values, int n, int16_t* wide);
  // Of each 16 values of a row that quantize made.
  void (*sum_groups)(const int8_t* values, int n, int32_t* sums);

  AttentionKernels attention[kNumKVFormats];

  // Passes over a row of logits [n].
  Peak (*peak)(const float* x, int n);
  // The first index from `start` on whose entry is more than `bound`, or n.
  int (*first_above)(const float* x, int n, int start, float bound);
  // The entries that are at least `cutoff`, in their order; how many. `out` has room for n + 16.
  int (*gather)(const float* x, int n, float cutoff, float* out);
  // out = (x - shift) / divisor
  void (*shift_and_divide)(const float* x, int n, float shift, float divisor, float* out);
  // out = x >= cutoff ? exp(x) : 0, and the sum of each kSumLength of them
  void (*exp_above)(const float* x, int n, float cutoff, float* out, float* sums);
};

}  // namespace pocketlm
