// A weight matrix [K, N] packed in panels of 64 columns, in one of the number formats, with its bias.
#pragma once

#include <vector>

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

enum class Dtype { kFloat32, kBFloat16, kInt8, kInt4 };
inline bool is_float(Dtype dtype) { return dtype == Dtype::kFloat32 || dtype == Dtype::kBFloat16; }

// The shapes of a packed matrix's arrays.
std::vector<int64_t> panels_shape(int k, int n, Dtype dtype);
inline int64_t padded_columns(int n) { return round_up(n, kPanelColumns); }

// Fills the arrays of a packed matrix, which hold zeros. `scales` is null with floats.
// (int4 is packed in src/pocketlm/kernels/compiled.py.)
void pack(const Tensor& weight, Dtype dtype, ThreadPool& pool, void* panels, float* scales);

// A packed matrix. It views its arrays, which belong to the caller.
class Matrix {
 public:
  Matrix() = default;
  Matrix(int k, int n, Dtype dtype, const void* panels, const float* scales, const float* bias)
      : k_(k), n_(n), dtype_(dtype), panels_(panels), scales_(scales), bias_(bias) {}

  int k() const { return k_; }
  int n() const { return n_; }
  Dtype dtype() const { return dtype_; }
  const float* bias() const { return bias_; }

  // Rows `first` to `first + num_rows` of x times panel number `panel`, into the same rows of `out`. With
  // weights in float32 or bfloat16 x is floats, or what round_bf16 makes of them; else it is `quantized`.
  void multiply(const Kernels& kernels, int panel, const void* x, const QuantizedRows& quantized, int first,
                int num_rows, Output out) const;

 private:
  int k_ = 0, n_ = 0;
  Dtype dtype_ = Dtype::kFloat32;
  const void* panels_ = nullptr;   // [panels], as kernels.h has them
  const float* scales_ = nullptr;  // [N rounded up to a panel], of the columns, not with floats
  const float* bias_ = nullptr;    // [N rounded up to a panel], zero where there is none
};

}  // namespace pocketlm
