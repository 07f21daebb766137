#include "matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace pocketlm {

namespace {

int64_t panel_bytes(int k, Dtype dtype) {
  if (dtype == Dtype::kFloat32) return int64_t{4} * k * kPanelColumns;
  if (dtype == Dtype::kInt8) return int64_t{round_up(k, 4)} * kPanelColumns;
  return int64_t{round_up(k, kGroupSize) / kGroupSize} * kGroupBytes;
}

void pack_float(const Tensor& weight, int column, int width, float* panel) {
  for (int c = 0; c < width; ++c)
    for (int64_t k = 0; k < weight.rows; ++k) panel[k * kPanelColumns + c] = weight.at(k, column + c);
}

// One scale a column: value = round(w * 127 / largest), stored plus 128. A column that holds a NaN or an
// infinity has a scale of NaN, so that no wrong number comes of it.
void pack_int8(const Tensor& weight, int column, int width, uint8_t* panel, float* scales) {
  std::fill_n(panel, panel_bytes(static_cast<int>(weight.rows), Dtype::kInt8), 128);
  for (int c = 0; c < width; ++c) {
    float peak = 0.0f;
    bool finite = true;
    for (int64_t k = 0; k < weight.rows; ++k) {
      const float w = weight.at(k, column + c);
      finite = finite && std::isfinite(w);
      peak = std::max(peak, std::fabs(w));
    }
    scales[c] = finite ? peak / 127.0f : NAN;
    if (!finite || peak == 0.0f) continue;
    const float inverse = 127.0f / peak;
    for (int64_t k = 0; k < weight.rows; ++k) {
      const float rounded = std::nearbyint(weight.at(k, column + c) * inverse);
      panel[(k / 4 * kPanelColumns + c) * 4 + k % 4] = static_cast<uint8_t>(static_cast<int>(rounded) + 128);
    }
  }
}

constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: a small number that goes there and back is rounded

// What the largest value of a group may become in 4 bits, where -8 to 7 is what there is. A little beyond
// -8 it is cut off, and the others are finer for it.
constexpr float kLeastScale = 1e-30f;  // below, its inverse may be infinite; such values become 0
constexpr float kLargestInt4[] = {-8.75f, -8.5f, -8.25f, -8.0f, -7.75f, -7.5f, -7.25f, -7.0f};

struct Group {
  float values[kGroupSize] = {};

  void read(const Tensor& weight, int first, int column) {
    for (int i = 0; i < kGroupSize && first + i < weight.rows; ++i) values[i] = weight.at(first + i, column);
  }

  // The value that a scale makes of number i.
  float rounded(int i, float inverse) const {
    return std::clamp((values[i] * inverse + kRounder) - kRounder, -8.0f, 7.0f);
  }

  // Of some scales, that with the least squared error; 0 if there is none, NaN if a value is not finite.
  float best_scale() const {
    float largest = 0.0f, poison = 0.0f;  // poison stays 0 unless something is not finite
    for (const float value : values) {
      if (std::fabs(value) > std::fabs(largest)) largest = value;
      poison += value * 0.0f;
    }
    if (poison != 0.0f) return NAN;
    float best = 0.0f;
    double least_error = INFINITY;
    for (const float to : kLargestInt4) {
      const float scale = largest / to;
      if (std::fabs(scale) < kLeastScale) continue;
      const float inverse = 1.0f / scale;
      double error = 0.0;
      for (int i = 0; i < kGroupSize; ++i) {
        const double off = static_cast<double>(values[i]) - static_cast<double>(rounded(i, inverse)) * scale;
        error += off * off;
      }
      if (!(error < least_error)) continue;
      least_error = error;
      best = scale;
    }
    return best;
  }
};

// Two scales: a float of the column, and of a group and column a number from -127 to 127 that it is
// multiplied with. A column that holds a NaN or an infinity has a scale of NaN, as in int8.
void pack_int4(const Tensor& weight, int column, int width, uint8_t* panel, float* scales) {
  const int num_groups = round_up(static_cast<int>(weight.rows), kGroupSize) / kGroupSize;
  std::memset(panel, 8 + 8 * 16, num_groups * int64_t{kGroupBytes});
  std::vector<float> of_groups(num_groups);
  for (int c = 0; c < kPanelColumns; ++c) {
    float peak = 0.0f, poison = 0.0f;
    for (int g = 0; g < num_groups; ++g) {
      Group group;
      if (c < width) group.read(weight, g * kGroupSize, column + c);
      of_groups[g] = group.best_scale();
      peak = std::max(peak, std::fabs(of_groups[g]));
      poison += of_groups[g] * 0.0f;
    }
    const bool finite = poison == 0.0f;
    scales[c] = finite ? peak / 127.0f : NAN;
    for (int g = 0; g < num_groups; ++g) {
      uint8_t* packed = panel + g * int64_t{kGroupBytes};
      int8_t& scale = reinterpret_cast<int8_t*>(packed + kGroupBytes - kPanelColumns)[c];
      scale = 0;
      if (!finite || scales[c] == 0.0f) continue;
      scale = static_cast<int8_t>(std::nearbyint(of_groups[g] / scales[c]));
      if (scale == 0) continue;
      Group group;
      group.read(weight, g * kGroupSize, column + c);
      const float inverse = 1.0f / (static_cast<float>(scale) * scales[c]);
      for (int i = 0; i < kGroupSize; i += 8)
        for (int j = 0; j < 4; ++j)
          packed[(i / 8 * kPanelColumns + c) * 4 + j] =
              static_cast<uint8_t>(static_cast<int>(group.rounded(i + j, inverse)) + 8 +
                                   (static_cast<int>(group.rounded(i + j + 4, inverse)) + 8) * 16);
    }
  }
}

}  // namespace

std::vector<int64_t> panels_shape(int k, int n, Dtype dtype) {
  const int64_t num_panels = padded_columns(n) / kPanelColumns;
  if (dtype == Dtype::kFloat32) return {num_panels, k, kPanelColumns};
  if (dtype == Dtype::kInt8) return {num_panels, round_up(k, 4) / 4, kPanelColumns, 4};
  return {num_panels, round_up(k, kGroupSize) / kGroupSize, kGroupBytes};
}

void pack(const Tensor& weight, Dtype dtype, ThreadPool& pool, void* panels, float* scales) {
  const int k = static_cast<int>(weight.rows), n = static_cast<int>(weight.columns);
  pool.run(static_cast<int>(padded_columns(n) / kPanelColumns), [&](int number, int) {
    const int column = number * kPanelColumns, width = std::min(kPanelColumns, n - column);
    char* panel = static_cast<char*>(panels) + number * panel_bytes(k, dtype);
    if (dtype == Dtype::kFloat32)
      pack_float(weight, column, width, reinterpret_cast<float*>(panel));
    else if (dtype == Dtype::kInt4)
      pack_int4(weight, column, width, reinterpret_cast<uint8_t*>(panel), scales + column);
    else
      pack_int8(weight, column, width, reinterpret_cast<uint8_t*>(panel), scales + column);
  });
}

void Matrix::multiply(const Kernels& kernels, int panel, const float* x, const QuantizedRows& quantized,
                      int first, int num_rows, Output out) const {
  const int column = panel * kPanelColumns;
  const char* data = static_cast<const char*>(panels_) + panel * panel_bytes(k_, dtype_);
  out.data += first * out.stride;
  if (dtype_ == Dtype::kFloat32) {
    kernels.matmul_f32(reinterpret_cast<const float*>(data), k_, x + static_cast<int64_t>(first) * k_, k_,
                       num_rows, column, out);
  } else {
    const QuantizedRows rows = {quantized.values + first * quantized.stride, quantized.stride,
                                quantized.scales + first, quantized.sums + first};
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(data);
    if (dtype_ == Dtype::kInt8)
      kernels.matmul_i8(bytes, scales_, k_, rows, num_rows, column, out);
    else
      kernels.matmul_i4(bytes, scales_, k_, rows, num_rows, column, out);
  }
}

}  // namespace pocketlm
