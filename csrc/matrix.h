// A weight matrix [K, N] packed in panels of 64 columns, float32 or int8, with its bias.
#pragma once

#include "buffer.h"
#include "half.h"
#include "kernels.h"
#include "thread_pool.h"

namespace pocketlm {

// A view of a matrix or vector as it came: float32 or float16, strides counted in elements.
struct Tensor {
  const void* data = nullptr;
  bool is_half = false;
  int64_t rows = 0, columns = 1;
  int64_t row_stride = 0, column_stride = 0;

  float at(int64_t row, int64_t column) const {
    const int64_t i = row * row_stride + column * column_stride;
    return is_half ? half_to_float(static_cast<const uint16_t*>(data)[i])
                   : static_cast<const float*>(data)[i];
  }
};

enum class Dtype { kFloat32, kInt8 };

class Matrix {
 public:
  Matrix() = default;
  Matrix(const Tensor& weight, const Tensor* bias, Dtype dtype, ThreadPool& pool);

  int k() const { return k_; }
  int n() const { return n_; }
  const float* bias() const { return bias_.data(); }
  int64_t num_bytes() const { return floats_.num_bytes() + bytes_.num_bytes() + scales_.num_bytes(); }

  // Rows `first` to `first + num_rows` of x times panel number `panel`, into the same rows of `out`.
  void multiply(const Kernels& kernels, int panel, const float* x, const QuantizedRows& quantized, int first,
                int num_rows, Output out) const;

 private:
  int k_ = 0, n_ = 0;
  Buffer<float> floats_;   // [panels][K][64]
  Buffer<uint8_t> bytes_;  // [panels][K / 4][64][4]
  Buffer<float> scales_;   // [N], of the columns, with int8
  Buffer<float> bias_;     // [N], zero where there is none
};

}  // namespace pocketlm
