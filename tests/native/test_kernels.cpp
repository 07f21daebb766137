// Every kernel of every instruction set against loops that anyone can read, and a small decoder. It needs no
// Python, so it also runs under an emulator: make test-arm.
//
// Usage: test_kernels [ISA...]    the instruction sets that must be there, best first
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <list>
#include <random>
#include <string>
#include <vector>

#include "decoder.h"
#include "dispatch.h"
#include "half.h"

using namespace pocketlm;
using Floats = std::vector<float>;

namespace {

int num_failures = 0;

__attribute__((format(printf, 2, 3))) void require(bool condition, const char* format, ...) {
  if (condition || ++num_failures > 20) return;  // the first twenty say enough
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
}

std::mt19937 generator(1);

float random_float(float low = -1.0f, float high = 1.0f) {
  return low + (high - low) * static_cast<float>(generator() * 0x1p-32);
}

Floats random_floats(int64_t size) {
  Floats values(size);
  for (float& value : values) value = random_float();
  return values;
}

bool same_bits(const float* a, const float* b, int64_t size) { return std::memcmp(a, b, 4 * size) == 0; }

// An error that single precision explains, for a result that `magnitude` went into.
bool close(double found, double expected, double magnitude) {
  return std::fabs(found - expected) <= 2e-6 * magnitude + 1e-6;
}

Tensor view(const Floats& values, int64_t rows, int64_t columns) {
  return {values.data(), false, rows, columns, columns, 1};
}

double activated(Activation activation, double v) {
  const double sigmoid = 1 / (1 + std::exp(-v));
  switch (activation) {
    case Activation::kNone:
      return v;
    case Activation::kGelu:
      return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    case Activation::kQuickGelu:
      return v / (1 + std::exp(-1.702 * v));
    case Activation::kRelu:
      return std::max(v, 0.0);
    case Activation::kReluSquared:
      return std::max(v, 0.0) * std::max(v, 0.0);
    case Activation::kSigmoid:
      return sigmoid;
    case Activation::kSilu:
      return v * sigmoid;
    case Activation::kTanh:
      return std::tanh(v);
  }
  return NAN;
}

// A row of activations in 8 bits.
struct Quantized {
  std::vector<int> values;
  float scale;
  int sum = 0;
};

Quantized quantized(const float* x, int n) {
  float peak = 0.0f;
  for (int i = 0; i < n; ++i) peak = std::max(peak, std::fabs(x[i]));
  Quantized row = {std::vector<int>(n), peak / 127.0f};
  for (int i = 0; i < n; ++i) {
    row.values[i] = peak > 1e-30f ? static_cast<int>(std::nearbyint(x[i] * (127.0f / peak))) : 0;
    row.sum += row.values[i];
  }
  return row;
}

// Rows in 8 bits as the kernel makes them.
struct KernelRows {
  std::vector<int8_t> values;
  Floats scales;
  std::vector<int32_t> sums, group_sums;
  std::vector<int16_t> wide;
  int stride;

  KernelRows(const Kernels& kernels, const Floats& x, int num_rows, int k)
      : scales(num_rows), sums(num_rows), stride(round_up(k, kGroupSize)) {
    values.resize(num_rows * stride, 77);
    group_sums.resize(num_rows * stride / kGroupSize);
    wide.resize(num_rows * stride, 77);
    for (int r = 0; r < num_rows; ++r) {
      kernels.quantize(&x[r * k], k, &values[r * stride], &scales[r], &sums[r]);
      kernels.sum_groups(&values[r * stride], k, &group_sums[r * stride / kGroupSize]);
      if (kernels.widen) kernels.widen(&values[r * stride], k, &wide[r * stride]);
    }
  }
  QuantizedRows view() const {
    return {values.data(), stride, scales.data(), sums.data(), group_sums.data(), wide.data()};
  }
};

void test_quantize(const Kernels& kernels) {
  for (int n = 1; n <= 70; ++n) {
    for (const float size : {0.0f, 1e-35f, 1e-6f, 1.0f, 1e6f}) {
      Floats x = random_floats(n);
      for (float& value : x) value *= size;
      const Quantized expected = quantized(x.data(), n);
      const KernelRows found(kernels, x, 1, n);
      bool equal = found.scales[0] == expected.scale && found.sums[0] == expected.sum;
      for (int i = 0; i < found.stride; ++i)
        equal = equal && found.values[i] == (i < n ? expected.values[i] : 0);
      require(equal, "quantize: %d values up to %g", n, size);
    }
    for (const float poison : {INFINITY, -INFINITY, NAN}) {
      Floats x = random_floats(n);
      x[n / 2] = poison;
      const KernelRows found(kernels, x, 1, n);
      require(std::isnan(found.scales[0]), "quantize: %g among %d values", poison, n);
    }
  }
}

// Where the group of 16 weights that row j and column c belong to begins, in the panels of [k, n].
int64_t group_start(int k, int j, int c) {
  const int num_groups = round_up(k, kGroupSize) / kGroupSize;
  return (static_cast<int64_t>(c / kPanelColumns) * num_groups + j / kGroupSize) * kGroupBytes;
}

int group_scale(const char* panels, int k, int j, int c) {
  return static_cast<int8_t>(panels[group_start(k, j, c) + kGroupBytes - kPanelColumns + c % kPanelColumns]);
}

// The byte that holds number [j, c], beside another in its low or high half.
int64_t pair_at(int k, int j, int c) {
  const int line = j % kGroupSize / 8 * kPanelColumns + c % kPanelColumns;
  return group_start(k, j, c) + line * 4 + j % 4;
}

int pair_shift(int j) { return j % 8 < 4 ? 0 : 4; }

int number_at(const char* panels, int k, int j, int c) {
  return (panels[pair_at(k, j, c)] >> pair_shift(j) & 15) - 8;
}

// The nearest numbers, with group scales of either sign that are not alike.
void pack_int4(const Floats& weight, int k, int n, std::vector<char>& panels, Floats& scales) {
  for (int c = 0; c < static_cast<int>(scales.size()); ++c) {
    float peak = 0.0f;
    for (int j = 0; j < k && c < n; ++j) peak = std::max(peak, std::fabs(weight[j * n + c]));
    scales[c] = peak / (7 * 64);
    for (int j = 0; j < round_up(k, kGroupSize); ++j) {
      const int group = j / kGroupSize, scale = (group % 2 ? 1 : -1) * (64 + (7 * group + c) % 64);
      panels[group_start(k, j, c) + kGroupBytes - kPanelColumns + c % kPanelColumns] =
          static_cast<char>(scale);
      const float wanted =
          c < n && j < k ? weight[j * n + c] / (static_cast<float>(scale) * scales[c]) : 0.0f;
      const int number = std::clamp(static_cast<int>(std::nearbyint(wanted)), -8, 7) + 8;
      char& pair = panels[pair_at(k, j, c)];
      pair = static_cast<char>((pair & ~(15 << pair_shift(j))) | number << pair_shift(j));
    }
  }
}

struct PackedMatrix {
  std::vector<char> panels;
  Floats scales, bias;
  Matrix matrix;

  // weight [k, n], bias [n]
  PackedMatrix(const Floats& weight, const Floats& bias_values, int k, int n, Dtype dtype, ThreadPool& pool)
      : scales(padded_columns(n)), bias(bias_values) {
    int64_t size = dtype == Dtype::kFloat32 ? 4 : 1;
    for (const int64_t length : panels_shape(k, n, dtype)) size *= length;
    panels.resize(size);
    bias.resize(padded_columns(n));
    if (dtype == Dtype::kInt4)
      pack_int4(weight, k, n, panels, scales);
    else
      pack(view(weight, k, n), dtype, pool, panels.data(), scales.data());
    matrix = Matrix(k, n, dtype, panels.data(), scales.data(), bias.data());
  }
};

std::vector<uint16_t> rounded_rows(const Kernels& kernels, const Floats& x, int num_rows, int k) {
  const int64_t stride = round_up(k, 2);
  std::vector<uint16_t> rounded(num_rows * stride, 77);
  for (int r = 0; r < num_rows; ++r) kernels.round_bf16(&x[r * k], k, &rounded[r * stride]);
  return rounded;
}

// All rows at once, and each alone: to the bit the same. Returns [rows, stride].
Floats multiply(const Kernels& kernels, const Matrix& matrix, const Floats& x, int num_rows,
                const Floats& before, int stride, Activation activation, Combine combine) {
  const QuantizedRows no_rows = {};
  const KernelRows rows(kernels, x, num_rows, matrix.k());
  const QuantizedRows quantized_rows = is_float(matrix.dtype()) ? no_rows : rows.view();
  std::vector<uint16_t> rounded;
  const void* numbers = x.data();
  if (matrix.dtype() == Dtype::kBFloat16 && kernels.round_bf16) {
    rounded = rounded_rows(kernels, x, num_rows, matrix.k());
    numbers = rounded.data();
  }
  Floats together = before, alone = before;
  for (int panel = 0; panel * kPanelColumns < matrix.n(); ++panel) {
    const auto into = [&](Floats& out) {
      return Output{out.data(), stride, matrix.n(), matrix.bias(), activation, combine};
    };
    matrix.multiply(kernels, panel, numbers, quantized_rows, 0, num_rows, into(together));
    for (int r = 0; r < num_rows; ++r)
      matrix.multiply(kernels, panel, numbers, quantized_rows, r, 1, into(alone));
  }
  require(same_bits(together.data(), alone.data(), static_cast<int64_t>(together.size())),
          "a row alone is another than among %d, %d inputs, %d columns", num_rows, matrix.k(), matrix.n());
  return together;
}

void test_matmul_f32(const Kernels& kernels, ThreadPool& pool, int num_rows, int k, int n,
                     Activation activation, Combine combine) {
  const int stride = n + 3;
  const Floats weight = random_floats(k * n), bias = random_floats(n), x = random_floats(num_rows * k);
  const Floats before = random_floats(num_rows * stride);
  const PackedMatrix packed(weight, bias, k, n, Dtype::kFloat32, pool);
  const Floats found = multiply(kernels, packed.matrix, x, num_rows, before, stride, activation, combine);
  for (int r = 0; r < num_rows; ++r) {
    for (int c = 0; c < stride; ++c) {
      const int i = r * stride + c;
      double expected = before[i], magnitude = 0;
      if (c < n) {
        double sum = bias[c];
        magnitude = 1 + std::fabs(bias[c]);
        for (int j = 0; j < k; ++j) {
          const double product = static_cast<double>(x[r * k + j]) * weight[j * n + c];
          sum += product;
          magnitude += std::fabs(product);
        }
        const double v = activated(activation, sum);
        magnitude *= 1 + std::fabs(v);
        expected = combine == Combine::kStore ? v : combine == Combine::kAdd ? before[i] + v : before[i] * v;
      }
      require(close(found[i], expected, magnitude),
              "matmul_f32: %d rows, %d inputs, %d columns, activation %d: [%d, %d] is %.9g, expected %.9g",
              num_rows, k, n, static_cast<int>(activation), r, c, found[i], expected);
    }
  }
}

// What bfloat16 holds exactly gives the products that float32 gives, but for the order of the sums.
void test_matmul_bf16(const Kernels& kernels, ThreadPool& pool, int num_rows, int k, int n) {
  Floats weight = random_floats(k * n), x = random_floats(num_rows * k);
  for (float& value : weight) value = std::nearbyint(128 * value) / 128;
  for (float& value : x) value = std::nearbyint(128 * value) / 128;
  const Floats bias = random_floats(n);
  const Floats before(num_rows * n, -77.0f);
  const PackedMatrix whole(weight, bias, k, n, Dtype::kFloat32, pool);
  const PackedMatrix half(weight, bias, k, n, Dtype::kBFloat16, pool);
  const Floats expected =
      multiply(kernels, whole.matrix, x, num_rows, before, n, Activation::kNone, Combine::kStore);
  const Floats found =
      multiply(kernels, half.matrix, x, num_rows, before, n, Activation::kNone, Combine::kStore);
  for (int i = 0; i < num_rows * n; ++i)
    require(close(found[i], expected[i], k),
            "matmul_bf16: %d rows, %d inputs, %d columns: %.9g, matmul_f32 %.9g", num_rows, k, n, found[i],
            expected[i]);
}

void test_matmul_i8(const Kernels& kernels, ThreadPool& pool, int num_rows, int k, int n, bool extreme) {
  Floats weight = random_floats(k * n), x = random_floats(num_rows * k);
  if (extreme)  // every value the largest or the smallest: the largest sums there can be
    for (Floats* values : {&weight, &x})
      for (float& value : *values) value = value < -0.5f ? -1.0f : 1.0f;
  const Floats bias = random_floats(n), before(num_rows * n, -77.0f);
  const PackedMatrix packed(weight, bias, k, n, Dtype::kInt8, pool);
  const Floats found =
      multiply(kernels, packed.matrix, x, num_rows, before, n, Activation::kNone, Combine::kStore);
  for (int c = 0; c < n; ++c) {
    Floats column(k);
    for (int j = 0; j < k; ++j) column[j] = weight[j * n + c];
    const Quantized w = quantized(column.data(), k);
    for (int r = 0; r < num_rows; ++r) {
      const Quantized row = quantized(&x[r * k], k);
      int sum = 0;
      for (int j = 0; j < k; ++j) sum += row.values[j] * w.values[j];
      const float expected = static_cast<float>(sum) * (row.scale * w.scale) + bias[c];
      require(found[r * n + c] == expected,
              "matmul_i8: %d rows, %d inputs, %d columns: [%d, %d] is %.9g, expected %.9g", num_rows, k, n, r,
              c, found[r * n + c], expected);
    }
  }
}

void test_matmul_i4(const Kernels& kernels, ThreadPool& pool, int num_rows, int k, int n) {
  const Floats weight = random_floats(k * n), bias = random_floats(n), x = random_floats(num_rows * k);
  const Floats before(num_rows * n, -77.0f);
  const PackedMatrix packed(weight, bias, k, n, Dtype::kInt4, pool);
  const Floats found =
      multiply(kernels, packed.matrix, x, num_rows, before, n, Activation::kNone, Combine::kStore);
  const char* panels = packed.panels.data();
  for (int r = 0; r < num_rows; ++r) {
    const Quantized row = quantized(&x[r * k], k);
    for (int c = 0; c < n; ++c) {
      const double scale = static_cast<double>(row.scale) * packed.scales[c];
      double expected = bias[c], magnitude = std::fabs(bias[c]);
      for (int j = 0; j < k; ++j) {
        const double product =
            scale * group_scale(panels, k, j, c) * number_at(panels, k, j, c) * row.values[j];
        expected += product;
        magnitude += std::fabs(product);
      }
      require(close(found[r * n + c], expected, magnitude),
              "matmul_i4: %d rows, %d inputs, %d columns: [%d, %d] is %.9g, expected %.9g", num_rows, k, n, r,
              c, found[r * n + c], expected);
    }
  }
}

void test_matmul(const Kernels& kernels) {
  ThreadPool pool(1);
  for (const int num_rows : {1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 25})
    for (const int k : {1, 2, 3, 4, 5, 17, 64})
      for (const int n : {1, 4, 7, 63, 64, 65, 130}) {
        test_matmul_f32(kernels, pool, num_rows, k, n, Activation::kNone, Combine::kStore);
        test_matmul_bf16(kernels, pool, num_rows, k, n);
        test_matmul_i8(kernels, pool, num_rows, k, n, false);
        test_matmul_i4(kernels, pool, num_rows, k, n);
      }
  for (const int num_rows : {15, 16, 17, 31, 32, 33, 48, 49, 64, 96})  // tiles of 16 rows and 64 inputs
    for (const int k : {63, 64, 65, 192, 206})
      for (const int n : {64, 70}) test_matmul_i8(kernels, pool, num_rows, k, n, false);
  for (const int num_rows : {7, 33})
    for (const bool extreme : {false, true}) test_matmul_i8(kernels, pool, num_rows, 3001, 66, extreme);
  for (int a = 0; a <= static_cast<int>(Activation::kTanh); ++a)
    for (const Combine combine : {Combine::kStore, Combine::kAdd, Combine::kMultiply})
      test_matmul_f32(kernels, pool, 3, 20, 71, static_cast<Activation>(a), combine);
}

void test_norm(const Kernels& kernels) {
  for (int n = 1; n <= 70; ++n) {
    Floats x = random_floats(n);
    for (float& value : x) value += 3.0f;
    const Floats weight = random_floats(n), bias = random_floats(n);
    for (const Norm kind : {Norm::kLayer, Norm::kRms}) {
      for (const float* b : {bias.data(), static_cast<const float*>(nullptr)}) {
        double mean = 0, squares = 0;
        for (const float value : x) mean += kind == Norm::kLayer ? value / static_cast<double>(n) : 0.0;
        for (const float value : x) squares += (value - mean) * (value - mean);
        Floats out(n);
        kernels.norm(kind, x.data(), weight.data(), b, 1e-2f, n, out.data());
        for (int i = 0; i < n; ++i) {
          const double expected =
              (x[i] - mean) / std::sqrt(squares / n + 1e-2f) * weight[i] + (b ? b[i] : 0.0f);
          require(close(out[i], expected, 10), "norm of %d: [%d] is %.9g, expected %.9g", n, i, out[i],
                  expected);
        }
      }
    }
  }
}

// What a row of a head is once it is kept, or multiplied.
void round_row(float* row, int head_dim, KVFormat format, bool is_query) {
  if (format == KVFormat::kInt8) {
    const Quantized bytes = quantized(row, head_dim);
    for (int d = 0; d < head_dim; ++d) row[d] = static_cast<float>(bytes.values[d]) * bytes.scale;
  } else if (format == KVFormat::kFloat16 && !is_query) {
    for (int d = 0; d < head_dim; ++d) row[d] = half_to_float(float_to_half(row[d]));
  }
}

// Queries of several lengths over the same keys and values, the longest first.
void test_attend(const AttentionKernels& kernels, KVFormat format, int head_dim,
                 const std::vector<int>& lengths) {
  const int longest = lengths[0], num_queries = static_cast<int>(lengths.size());
  const int num_blocks = round_up(longest, kBlockSize) / kBlockSize;
  const int64_t stride = head_block_bytes(format, head_dim);
  // Not a number where no position is: none of it may count.
  std::vector<uint8_t> keys(num_blocks * stride, 0xff), values = keys;
  std::vector<int32_t> block_table(num_blocks);
  for (int b = 0; b < num_blocks; ++b) block_table[b] = num_blocks - 1 - b;
  Floats key = random_floats(longest * head_dim), value = random_floats(longest * head_dim);
  for (int p = 0; p < longest; ++p) {
    const int64_t block = block_table[p / kBlockSize] * stride;
    kernels.keep(&key[p * head_dim], &value[p * head_dim], head_dim, p % kBlockSize, &keys[block],
                 &values[block]);
  }

  Floats q = random_floats(num_queries * head_dim);
  Floats together(num_queries * head_dim), alone = together;
  Floats scratch(kMaxQueries * (num_blocks * kBlockSize + padded_head_dim(head_dim)));
  const HeadBlocks blocks = {keys.data(), values.data(), stride, block_table.data()};
  const float scale = 0.7f;
  std::vector<Query> queries;
  for (int i = 0; i < num_queries; ++i) {
    queries.push_back({&q[i * head_dim], lengths[i], &alone[i * head_dim]});
    kernels.attend(&queries[i], 1, blocks, head_dim, scale, scratch.data());
    queries[i].out = &together[i * head_dim];
  }
  kernels.attend(queries.data(), num_queries, blocks, head_dim, scale, scratch.data());
  require(same_bits(together.data(), alone.data(), num_queries * head_dim),
          "attention: a query alone is another than among %d", num_queries);

  for (int i = 0; i < num_queries; ++i) round_row(&q[i * head_dim], head_dim, format, true);
  for (int p = 0; p < longest; ++p)
    for (Floats* side : {&key, &value}) round_row(&(*side)[p * head_dim], head_dim, format, false);
  for (int i = 0; i < num_queries; ++i) {
    std::vector<double> shares(lengths[i]);
    double total = 0;
    for (int p = 0; p < lengths[i]; ++p) {
      double score = 0;
      for (int d = 0; d < head_dim; ++d)
        score += static_cast<double>(q[i * head_dim + d]) * key[p * head_dim + d];
      total += shares[p] = std::exp(scale * score);
    }
    // Weights of 8 bits are up to half a step off, and a step is at most 1 / 127 of the largest in a block.
    double half_steps = 0;
    for (int first = 0; first < lengths[i]; first += kBlockSize) {
      double largest = 0;
      const int end = std::min(first + kBlockSize, lengths[i]);
      for (int p = first; p < end; ++p) {
        const float* row = &value[p * head_dim];
        double peak = 0;
        for (int d = 0; d < head_dim; ++d) peak = std::max(peak, std::fabs(static_cast<double>(row[d])));
        largest = std::max(largest, shares[p] / total * peak);
      }
      half_steps += (end - first) * 0.5 * largest / 127;
    }
    const double allowed = format == KVFormat::kInt8 ? half_steps : 0.0;
    for (int d = 0; d < head_dim; ++d) {
      double expected = 0;
      for (int p = 0; p < lengths[i]; ++p) expected += shares[p] / total * value[p * head_dim + d];
      const float found = together[i * head_dim + d];
      const double beyond = std::max(0.0, std::fabs(found - expected) - allowed);
      require(close(beyond, 0, 5),
              "attention: %d positions, head size %d, format %d: [%d] is %.9g, expected %.9g", lengths[i],
              head_dim, static_cast<int>(format), d, found, expected);
    }
  }
}

void test_attention(const Kernels& kernels) {
  for (const int head_dim : {1, 5, 16, 24, 64, 80, 128}) {
    for (const int longest : {1, 2, 15, 16, 17, 40, 64, 65, 81, 131}) {
      for (const int num_queries : {1, 2, 3, kMaxQueries}) {
        std::vector<int> lengths;
        for (int i = 0; i < num_queries; ++i) lengths.push_back(std::max(1, longest - i * i));
        for (const KVFormat format : {KVFormat::kFloat32, KVFormat::kFloat16, KVFormat::kInt8})
          test_attend(kernels.attention[static_cast<int>(format)], format, head_dim, lengths);
      }
    }
  }
}

// Keys and values with a NaN: what attends to their position is not a number.
void test_attention_to_nan(const Kernels& kernels) {
  const int head_dim = 24, length = 20;
  for (const KVFormat format : {KVFormat::kFloat32, KVFormat::kFloat16, KVFormat::kInt8}) {
    const AttentionKernels& attention = kernels.attention[static_cast<int>(format)];
    for (const bool in_key : {true, false}) {
      const int64_t stride = head_block_bytes(format, head_dim);
      std::vector<uint8_t> keys(2 * stride), values = keys;
      for (int p = 0; p < length; ++p) {
        Floats key = random_floats(head_dim), value = random_floats(head_dim);
        if (p == 17) (in_key ? key : value)[3] = NAN;
        const int64_t block = p / kBlockSize * stride;
        attention.keep(key.data(), value.data(), head_dim, p % kBlockSize, &keys[block], &values[block]);
      }
      const int32_t block_table[] = {0, 1};
      const Floats q = random_floats(head_dim);
      Floats scratch(kMaxQueries * (2 * kBlockSize + padded_head_dim(head_dim)));
      for (const int seen : {17, 18, length}) {
        Floats out(head_dim);
        const Query query = {q.data(), seen, out.data()};
        attention.attend(&query, 1, {keys.data(), values.data(), stride, block_table}, head_dim, 1.0f,
                         scratch.data());
        require(std::isnan(out[3]) == (seen > 17), "attention to NaN in %s, format %d, %d positions: %g",
                in_key ? "a key" : "a value", static_cast<int>(format), seen, out[3]);
      }
    }
  }
}

void test_logits(const Kernels& kernels) {
  std::vector<int> sizes = {255, 256, 257, 600};
  for (int n = 1; n <= 70; ++n) sizes.push_back(n);
  for (const int n : sizes) {
    Floats x = random_floats(n);
    for (const float poison : {INFINITY, -INFINITY, NAN}) {
      Floats poisoned = x;
      poisoned[generator() % n] = poison;
      require(!kernels.peak(poisoned.data(), n).all_finite, "peak of %d with %g", n, poison);
    }
    const int first = static_cast<int>(generator() % n);
    x[first] = x[n - 1] = 2.0f;
    const Peak peak = kernels.peak(x.data(), n);
    require(peak.all_finite && peak.index == first, "peak of %d is at %d, expected %d", n, peak.index, first);

    for (const int start : {0, first, n})
      for (const float bound : {-2.0f, 0.0f, 1.0f, 2.0f}) {
        int expected = start;
        while (expected < n && !(x[expected] > bound)) ++expected;
        const int found = kernels.first_above(x.data(), n, start, bound);
        require(found == expected, "first_above %g of %d from %d on is %d, expected %d", bound, n, start,
                found, expected);
      }

    for (const float cutoff : {-2.0f, 0.0f, 2.0f, 3.0f}) {
      Floats expected, found(n + 16);
      std::copy_if(x.begin(), x.end(), std::back_inserter(expected), [&](float v) { return v >= cutoff; });
      found.resize(kernels.gather(x.data(), n, cutoff, found.data()));
      require(found == expected, "gather from %g on of %d", cutoff, n);
    }

    Floats out(n);
    kernels.shift_and_divide(x.data(), n, 0.3f, 0.7f, out.data());
    for (int i = 0; i < n; ++i)
      require(out[i] == (x[i] - 0.3f) / 0.7f, "shift_and_divide of %d: [%d] is %.9g", n, i, out[i]);

    for (float& value : x) value = random_float(-100.0f, 0.0f);
    Floats sums(round_up(n, kSumLength) / kSumLength);
    kernels.exp_above(x.data(), n, -80.0f, out.data(), sums.data());
    std::vector<double> expected_sums(sums.size());
    for (int i = 0; i < n; ++i) {
      const double expected = x[i] >= -80.0f ? std::exp(static_cast<double>(x[i])) : 0.0;
      expected_sums[i / kSumLength] += expected;
      require(std::fabs(out[i] - expected) <= 1e-6 * expected, "exp_above: e^%.9g is %.9g", x[i], out[i]);
    }
    for (size_t i = 0; i < sums.size(); ++i)
      require(std::fabs(sums[i] - expected_sums[i]) <= 2e-6 * expected_sums[i],
              "exp_above of %d: sum %zu is %.9g, expected %.9g", n, i, sums[i], expected_sums[i]);
  }
}

// Grouped heads, a gated MLP, rotated positions, and no size that a vector divides.
const Spec kSpec = {.vocab_size = 101,
                    .hidden_size = 44,
                    .num_layers = 2,
                    .num_heads = 4,
                    .num_kv_heads = 2,
                    .head_dim = 11,
                    .intermediate_size = 71,
                    .max_positions = 64,
                    .norm = Norm::kRms,
                    .norm_epsilon = 1e-5f,
                    .activation = Activation::kSilu,
                    .gated_mlp = true,
                    .parallel_residual = false,
                    .position_offset = 0,
                    .embedding_scale = 1.0f,
                    .attention_scales = {0.3f, 0.3f},
                    .rotary_frequencies = {1.0, 0.3, 0.1}};

// Random weights in a dtype, packed.
struct RandomWeights {
  std::list<Floats> arrays;
  std::list<PackedMatrix> matrices;
  Weights packed;

  explicit RandomWeights(Dtype dtype) {
    generator.seed(2);  // the same weights in every dtype
    ThreadPool pool(1);
    const int hidden = kSpec.hidden_size;
    const auto norm = [&] { return NormWeights{array(hidden).data(), nullptr}; };
    const auto matrix = [&](int k, int n) {
      matrices.emplace_back(array(k * n), Floats(n), k, n, dtype, pool);
      return matrices.back().matrix;
    };
    packed.dtype = dtype;
    packed.token_embedding = view(array(kSpec.vocab_size * hidden), kSpec.vocab_size, hidden);
    for (int i = 0; i < kSpec.num_layers; ++i)
      packed.layers.push_back({.attention_norm = norm(),
                               .mlp_norm = norm(),
                               .qkv = matrix(hidden, kSpec.qkv_size()),
                               .attention_out = matrix(kSpec.num_heads * kSpec.head_dim, hidden),
                               .gate = matrix(hidden, kSpec.intermediate_size),
                               .up = matrix(hidden, kSpec.intermediate_size),
                               .down = matrix(kSpec.intermediate_size, hidden)});
    packed.final_norm = norm();
    packed.head = matrix(hidden, kSpec.vocab_size);
  }

 private:
  const Floats& array(int64_t size) { return arrays.emplace_back(random_floats(size)); }
};

constexpr int kNumTokens = 37;

// Logits of every position [kNumTokens, V], computed `chunk` tokens at a time.
Floats all_logits(const RandomWeights& weights, const Kernels& kernels, int num_threads, int chunk) {
  Decoder decoder(kSpec, weights.packed, num_threads, kernels);
  KVCache cache(kSpec, decoder.kv_format(), 3);
  std::vector<int32_t> token_ids, positions, slots, rows;
  const std::vector<int32_t> block_table = {2, 0, 1};
  for (int32_t t = 0; t < kNumTokens; ++t) {
    token_ids.push_back(t * 7 % kSpec.vocab_size);
    positions.push_back(t);
    slots.push_back(block_table[t / kBlockSize] * kBlockSize + t % kBlockSize);
    rows.push_back(t);
  }
  Floats logits(kNumTokens * kSpec.vocab_size);
  for (int t = 0; t < kNumTokens; t += chunk) {
    const int num_tokens = std::min(chunk, kNumTokens - t);
    const int32_t query_starts[] = {0, num_tokens};
    const Batch batch = {
        num_tokens,   1,          3, num_tokens, &token_ids[t], &positions[t], &slots[t], block_table.data(),
        query_starts, rows.data()};
    decoder.forward(batch, cache, &logits[t * kSpec.vocab_size]);
  }
  return logits;
}

// Against what portable makes of the same dtype; and the promise.
void test_decoder(const Kernels& kernels) {
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kInt8, Dtype::kInt4}) {
    const RandomWeights weights(dtype);
    const Floats expected = all_logits(weights, *find_kernels("portable"), 1, kNumTokens);
    float peak = 0.0f;
    for (const float logit : expected) peak = std::max(peak, std::fabs(logit));
    const Floats whole = all_logits(weights, kernels, 1, kNumTokens);
    const bool rounds_more = dtype == Dtype::kBFloat16 && kernels.round_bf16;  // activations, too
    const float tolerance = (dtype == Dtype::kFloat32 ? 1e-4f : rounds_more ? 0.1f : 0.02f) * peak;
    float error = 0.0f;
    for (size_t i = 0; i < whole.size(); ++i)
      error = std::fabs(whole[i] - expected[i]) <= error ? error : std::fabs(whole[i] - expected[i]);
    require(error <= tolerance, "decoder, dtype %d: logits up to %g are %g from those of portable",
            static_cast<int>(dtype), peak, error);
    for (const int chunk : {1, 5, kNumTokens})
      require(same_bits(all_logits(weights, kernels, 3, chunk).data(), whole.data(),
                        static_cast<int64_t>(whole.size())),
              "decoder, dtype %d: %d tokens at a time on 3 threads give other logits",
              static_cast<int>(dtype), chunk);
  }
}

}  // namespace

int main(int num_arguments, char** arguments) {
  const std::vector<const Kernels*> all = available_kernels();
  std::string found, expected;
  for (const Kernels* kernels : all) found += std::string(" ") + kernels->isa;
  for (int i = 1; i < num_arguments; ++i) expected += std::string(" ") + arguments[i];
  require(expected.empty() || found == expected, "instruction sets are%s, expected%s", found.c_str(),
          expected.c_str());

  for (const Kernels* kernels : all) {
    const int failures_before = num_failures;
    test_quantize(*kernels);
    test_matmul(*kernels);
    test_norm(*kernels);
    test_attention(*kernels);
    test_attention_to_nan(*kernels);
    test_logits(*kernels);
    test_decoder(*kernels);
    std::printf("%-12s %s\n", kernels->isa, num_failures == failures_before ? "ok" : "FAILED");
    std::fflush(stdout);
  }
  return num_failures == 0 ? 0 : 1;
}
