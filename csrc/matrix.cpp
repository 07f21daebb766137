#include "matrix.h"

#include <algorithm>
#include <cmath>

namespace pocketlm {

namespace {

void pack_float(const Tensor& weight, int column, int width, float* panel) {
  for (int c = 0; c < width; ++c)
    for (int64_t k = 0; k < weight.rows; ++k) panel[k * kPanelColumns + c] = weight.at(k, column + c);
}

// One scale a column: value = round(w * 127 / largest), stored plus 128. A column that holds a NaN or an
// infinity has a scale of NaN, so that no wrong number comes of it.
void pack_int8(const Tensor& weight, int column, int width, uint8_t* panel, float* scales) {
  std::fill_n(panel, static_cast<int64_t>(round_up(static_cast<int>(weight.rows), 4)) * kPanelColumns, 128);
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

Matrix::Matrix(const Tensor& weight, const Tensor* bias, Dtype dtype, ThreadPool& pool)
    : k_(static_cast<int>(weight.rows)), n_(static_cast<int>(weight.columns)) {
  const int num_panels = (n_ + kPanelColumns - 1) / kPanelColumns;
  const int64_t padded = static_cast<int64_t>(num_panels) * kPanelColumns;
  bias_ = Buffer<float>(padded);
  if (bias)
    for (int i = 0; i < n_; ++i) bias_.data()[i] = bias->at(i, 0);
  if (dtype == Dtype::kFloat32) {
    floats_ = Buffer<float>(padded * k_);
  } else {
    bytes_ = Buffer<uint8_t>(padded * round_up(k_, 4));
    scales_ = Buffer<float>(padded);
  }
  pool.run(num_panels, [&](int panel, int) {
    const int column = panel * kPanelColumns, width = std::min(kPanelColumns, n_ - column);
    if (dtype == Dtype::kFloat32)
      pack_float(weight, column, width, floats_.data() + static_cast<int64_t>(column) * k_);
    else
      pack_int8(weight, column, width, bytes_.data() + static_cast<int64_t>(column) * round_up(k_, 4),
                scales_.data() + column);
  });
}

void Matrix::multiply(const Kernels& kernels, int panel, const float* x, const QuantizedRows& quantized,
                      int first, int num_rows, Output out) const {
  const int column = panel * kPanelColumns;
  out.data += first * out.stride;
  if (floats_.data()) {
    kernels.matmul_f32(floats_.data() + static_cast<int64_t>(column) * k_, k_,
                       x + static_cast<int64_t>(first) * k_, k_, num_rows, column, out);
  } else {
    const QuantizedRows rows = {quantized.values + first * quantized.stride, quantized.stride,
                                quantized.scales + first, quantized.sums + first};
    kernels.matmul_i8(bytes_.data() + static_cast<int64_t>(column) * round_up(k_, 4), scales_.data(), k_,
                      rows, num_rows, column, out);
  }
}

}  // namespace pocketlm
