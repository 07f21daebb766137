#include "matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace pocketlm {

namespace {

int64_t panel_bytes(int k, Dtype dtype) {
  if (dtype == Dtype::kFloat32) return int64_t{4} * k * kPanelColumns;
  if (dtype == Dtype::kBFloat16) return int64_t{2} * round_up(k, 2) * kPanelColumns;
  if (dtype == Dtype::kInt8) return int64_t{round_up(k, 4)} * kPanelColumns;
  return int64_t{round_up(k, kGroupSize) / kGroupSize} * kGroupBytes;
}

void pack_float(const Tensor& weight, int column, int width, float* panel) {
  for (int c = 0; c < width; ++c)
    for (int64_t k = 0; k < weight.rows; ++k) panel[k * kPanelColumns + c] = weight.at(k, column + c);
}

void pack_bfloat16(const Tensor& weight, int column, int width, uint16_t* panel) {
  for (int c = 0; c < width; ++c)
    for (int64_t k = 0; k < weight.rows; ++k)
      panel[(k / 2 * kPanelColumns + c) * 2 + k % 2] = float_to_bfloat16(weight.at(k, column + c));
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

}  // namespace

std::vector<int64_t> panels_shape(int k, int n, Dtype dtype) {
  const int64_t num_panels = padded_columns(n) / kPanelColumns;
  if (dtype == Dtype::kFloat32) return {num_panels, k, kPanelColumns};
  if (dtype == Dtype::kBFloat16) return {num_panels, round_up(k, 2) / 2, 4 * kPanelColumns};
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
    else if (dtype == Dtype::kBFloat16)
      pack_bfloat16(weight, column, width, reinterpret_cast<uint16_t*>(panel));
    else
      pack_int8(weight, column, width, reinterpret_cast<uint8_t*>(panel), scales + column);
  });
}

void Matrix::multiply(const Kernels& kernels, int panel, const void* x, const QuantizedRows& quantized,
                      int first, int num_rows, Output out) const {
  const int column = panel * kPanelColumns;
  const char* data = static_cast<const char*>(panels_) + panel * panel_bytes(k_, dtype_);
  out.data += first * out.stride;
  if (is_float(dtype_)) {
    const float* floats = static_cast<const float*>(x) + static_cast<int64_t>(first) * k_;
    if (dtype_ == Dtype::kFloat32) {
      kernels.matmul_f32(reinterpret_cast<const float*>(data), k_, floats, k_, num_rows, column, out);
    } else {
      const uint16_t* panel_of_pairs = reinterpret_cast<const uint16_t*>(data);
      const int stride = kernels.round_bf16 ? round_up(k_, 2) : k_;
      const uint16_t* rounded = static_cast<const uint16_t*>(x) + static_cast<int64_t>(first) * stride;
      kernels.matmul_bf16(panel_of_pairs, k_, kernels.round_bf16 ? static_cast<const void*>(rounded) : floats,
                          stride, num_rows, column, out);
    }
  } else {
    const QuantizedRows rows = {quantized.values + first * quantized.stride,
                                quantized.stride,
                                quantized.scales + first,
                                quantized.sums + first,
                                quantized.group_sums + first * (quantized.stride / kGroupSize),
                                quantized.wide + first * quantized.stride};
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(data);
    if (dtype_ == Dtype::kInt8)
      kernels.matmul_i8(bytes, scales_, k_, rows, num_rows, column, out);
    else
      kernels.matmul_i4(bytes, scales_, k_, rows, num_rows, column, out);
  }
}

}  // namespace pocketlm
