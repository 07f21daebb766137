#include "packed_weights.h"

#include <memory>

#include "buffer.h"

namespace nb = nanobind;

namespace pocketlm {
namespace {

constexpr int64_t kMaxSide = 1 << 26;  // of a matrix

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t length : shape) text += (text.empty() ? "" : " by ") + std::to_string(length);
  return text;
}

void require_shape(const std::string& name, const std::vector<int64_t>& found,
                   const std::vector<int64_t>& expected) {
  require(found == expected,
          "weight " + name + " is " + shape_text(found) + ", expected " + shape_text(expected));
}

void require_aligned(const std::string& name, const AnyArray& array, size_t alignment) {
  require(reinterpret_cast<uintptr_t>(array.data()) % alignment == 0,
          "weight " + name + " does not lie on a multiple of " + std::to_string(alignment) + " bytes");
}

Tensor tensor_from(const std::string& name, const AnyArray& array) {
  require(array.dtype() == nb::dtype<float>() || array.dtype() == nb::dlpack::dtype{2, 16, 1},
          "weight " + name + " must be float32 or float16");
  require(array.ndim() == 2, "weight " + name + " must have two dimensions");
  Tensor tensor;
  tensor.data = array.data();
  tensor.is_half = array.dtype().bits == 16;
  require_aligned(name, array, tensor.is_half ? 2 : 4);
  tensor.rows = static_cast<int64_t>(array.shape(0));
  tensor.columns = static_cast<int64_t>(array.shape(1));
  tensor.row_stride = array.stride(0);
  tensor.column_stride = array.stride(1);
  return tensor;
}

// An array of zeros that Python owns.
template <class T>
nb::object new_array(const std::vector<int64_t>& shape, T** data) {
  int64_t size = 1;
  for (int64_t length : shape) size *= length;
  auto buffer = std::make_unique<Buffer<T>>(size);
  *data = buffer->data();
  std::vector<size_t> lengths(shape.begin(), shape.end());
  nb::capsule owner(buffer.release(), [](void* p) noexcept { delete static_cast<Buffer<T>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(*data, lengths.size(), lengths.data(), owner));
}

class Reader {
 public:
  Reader(const nb::dict& arrays, Dtype dtype, std::vector<AnyArray>* kept)
      : arrays_(arrays), dtype_(dtype), kept_(*kept) {}

  Weights read(const Spec& spec) {
    Weights weights;
    weights.dtype = dtype_;
    weights.token_embedding = table("token_embedding", spec.vocab_size, spec.hidden_size);
    if (has("position_embedding"))
      weights.position_embedding =
          table("position_embedding", int64_t{spec.max_positions} + spec.position_offset, spec.hidden_size);
    for (int i = 0; i < spec.num_layers; ++i) {
      const std::string prefix = "layers." + std::to_string(i) + ".";
      LayerWeights layer;
      layer.attention_norm = norm(prefix + "attention_norm", spec);
      if (!spec.parallel_residual || has(prefix + "mlp_norm.weight"))
        layer.mlp_norm = norm(prefix + "mlp_norm", spec);
      layer.qkv = matrix(prefix + "qkv", spec.hidden_size, spec.qkv_size());
      layer.attention_out =
          matrix(prefix + "attention_out", spec.num_heads * spec.head_dim, spec.hidden_size);
      if (spec.gated_mlp) layer.gate = matrix(prefix + "gate", spec.hidden_size, spec.intermediate_size);
      layer.up = matrix(prefix + "up", spec.hidden_size, spec.intermediate_size);
      layer.down = matrix(prefix + "down", spec.intermediate_size, spec.hidden_size);
      weights.layers.push_back(layer);
    }
    weights.final_norm = norm("final_norm", spec);
    weights.head = matrix("head", spec.hidden_size, spec.vocab_size);
    return weights;
  }

 private:
  bool has(const std::string& name) const { return arrays_.contains(name.c_str()); }

  const AnyArray& find(const std::string& name) {
    require(has(name), "weight " + name + " is missing");
    return kept_.emplace_back(nb::cast<AnyArray>(arrays_[name.c_str()]));
  }

  Tensor table(const std::string& name, int64_t rows, int64_t columns) {
    const Tensor tensor = tensor_from(name, find(name));
    require_shape(name, {tensor.rows, tensor.columns}, {rows, columns});
    return tensor;
  }

  // A contiguous array of exactly this kind.
  template <class T>
  const T* array(const std::string& name, const std::vector<int64_t>& shape, size_t alignment = alignof(T)) {
    const AnyArray& found = find(name);
    require(found.dtype() == nb::dtype<T>(), "weight " + name + " is of the wrong dtype");
    std::vector<int64_t> found_shape;
    for (size_t i = 0; i < found.ndim(); ++i) found_shape.push_back(static_cast<int64_t>(found.shape(i)));
    require_shape(name, found_shape, shape);
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0; stride *= shape[i])
      require(shape[i] == 1 || found.stride(i) == stride, "weight " + name + " is not contiguous");
    require_aligned(name, found, alignment);
    return static_cast<const T*>(found.data());
  }

  NormWeights norm(const std::string& name, const Spec& spec) {
    const std::string bias = name + ".bias";
    return {array<float>(name + ".weight", {spec.hidden_size}),
            has(bias) ? array<float>(bias, {spec.hidden_size}) : nullptr};
  }

  Matrix matrix(const std::string& name, int k, int n) {
    const std::vector<int64_t> shape = panels_shape(k, n, dtype_), columns = {padded_columns(n)};
    const std::string weight = name + ".weight";
    const void* panels;
    const float* scales = nullptr;
    if (dtype_ == Dtype::kFloat32)
      panels = array<float>(weight, shape, kPanelAlignment);
    else
      panels = array<uint8_t>(weight, shape, kPanelAlignment);
    if (!is_float(dtype_)) scales = array<float>(name + ".scales", columns);
    return Matrix(k, n, dtype_, panels, scales, array<float>(name + ".bias", columns));
  }

  const nb::dict& arrays_;
  const Dtype dtype_;
  std::vector<AnyArray>& kept_;
};

}  // namespace

Dtype dtype_named(const std::string& name) {
  if (name == "float32") return Dtype::kFloat32;
  if (name == "bfloat16") return Dtype::kBFloat16;
  if (name == "int8") return Dtype::kInt8;
  require(name == "int4", "unknown dtype " + name);
  return Dtype::kInt4;
}

nb::list pack_matrix(const std::string& name, const AnyArray& weight, const std::string& dtype_name,
                     int num_threads) {
  const Dtype dtype = dtype_named(dtype_name);
  require(dtype != Dtype::kInt4, "int4 is packed in Python");
  const Tensor tensor = tensor_from(name, weight);
  require(num_threads >= 1 && num_threads <= kMaxThreads, "num_threads must be 1 to 1024");
  require(tensor.rows >= 1 && tensor.rows <= kMaxSide && tensor.columns >= 1 && tensor.columns <= kMaxSide,
          "weight " + name + " is too large or empty");
  const int k = static_cast<int>(tensor.rows), n = static_cast<int>(tensor.columns);
  float* scales = nullptr;
  void* panels = nullptr;
  nb::list arrays;
  if (dtype == Dtype::kFloat32) {
    float* floats;
    arrays.append(new_array(panels_shape(k, n, dtype), &floats));
    panels = floats;
  } else {
    uint8_t* bytes;
    arrays.append(new_array(panels_shape(k, n, dtype), &bytes));
    panels = bytes;
  }
  if (!is_float(dtype)) arrays.append(new_array({padded_columns(n)}, &scales));
  nb::gil_scoped_release release;
  ThreadPool pool(num_threads);
  pack(tensor, dtype, pool, panels, scales);
  return arrays;
}

Weights read_packed_weights(const Spec& spec, const nb::dict& arrays, Dtype dtype,
                            std::vector<AnyArray>* kept) {
  return Reader(arrays, dtype, kept).read(spec);
}

}  // namespace pocketlm
