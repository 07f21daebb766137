// The forward pass. The definition, in NumPy, is src/pocketlm/kernels/reference.py; the spec and the names
// of the weights are in src/pocketlm/kernels/spec.py.
#pragma once

#include <algorithm>
#include <mutex>
#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "matrix.h"
#include "sampler.h"
#include "thread_pool.h"

namespace pocketlm {

constexpr int kRowsPerTask = 8;  // for work done row by row

struct Spec {
  int vocab_size, hidden_size, num_layers, num_heads, num_kv_heads, head_dim, intermediate_size,
      max_positions;
  Norm norm;
  float norm_epsilon;
  Activation activation;
  bool gated_mlp, parallel_residual;
  int position_offset;
  float embedding_scale;
  std::vector<float> attention_scales;     // [L]
  std::vector<double> rotary_frequencies;  // [rotary dimensions / 2]

  int qkv_size() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
};

struct NormWeights {
  const float *weight = nullptr, *bias = nullptr;  // [E]; null where there is none
};

struct LayerWeights {
  NormWeights attention_norm, mlp_norm;
  Matrix qkv, attention_out, gate, up, down;
};

// Packed weights, checked before. All of them are views.
struct Weights {
  Dtype dtype;
  Tensor token_embedding, position_embedding;  // position_embedding.data may be null
  std::vector<LayerWeights> layers;
  NormWeights final_norm;
  Matrix head;
};

// Keys and values of all layers: [L][num_blocks][G][D' * 16] each, in bytes.
class KVCache {
 public:
  KVCache(const Spec& spec, KVFormat format, int num_blocks);

  int num_blocks() const { return num_blocks_; }
  int64_t num_bytes() const { return keys_.num_bytes() + values_.num_bytes(); }

 private:
  friend class Decoder;
  int64_t start_of(int layer, int head) const { return layer * layer_stride_ + head * head_stride_; }
  int num_blocks_;
  int64_t head_stride_, block_stride_, layer_stride_;
  Buffer<uint8_t> keys_, values_;
};

// A ragged batch; see ForwardInputs in src/pocketlm/kernels/inputs.py. All indices are checked before.
// No sequence reads a block that another one of the batch writes.
struct Batch {
  int num_tokens, num_sequences, max_blocks, num_logit_rows;
  const int32_t *token_ids, *positions, *slot_mapping, *block_tables, *query_starts, *logit_rows;
};

class Decoder {
 public:
  // The arrays that `weights` views must live as long as the decoder.
  Decoder(const Spec& spec, const Weights& weights, int num_threads, const Kernels& kernels);

  const Spec& spec() const { return spec_; }
  KVFormat kv_format() const { return kv_format_; }
  std::optional<double> worker_cpu_seconds() { return pool_.cpu_seconds(); }

  // logits [num_logit_rows, V]
  void forward(const Batch& batch, KVCache& cache, float* logits);

  // Calls work(row, sampler) for each row, on all threads.
  template <class Work>
  void sample(int num_rows, const Work& work) {
    std::lock_guard lock(mutex_);
    pool_.run(num_rows, [&](int row, int thread) { work(row, samplers_[thread]); });
  }

 private:
  struct Scratch {  // of one thread
    Buffer<float> attention, row;
    std::vector<Query> queries;
  };
  struct AttentionTask {  // heads are key-value heads
    int sequence, first_token, num_tokens, first_head, num_heads;
    bool alone;  // no other task has tokens of the same sequence and head
  };
  struct Rows {  // that a matrix is multiplied with, as Matrix::multiply takes them
    const void* numbers;
    QuantizedRows quantized;
  };

  void embed(const Batch& batch);
  void prepare_rotation(const Batch& batch);
  // Rows as the matrix that reads them wants them.
  Rows norm_rows(const NormWeights& weights, const float* x, int num_rows, const Matrix& reader);
  Rows rows_for(const Matrix& reader, const float* x, int num_rows);
  void linear(const Matrix& matrix, const Rows& x, int num_rows, float* out,
              Activation activation = Activation::kNone, Combine combine = Combine::kStore);
  void plan_attention(const Batch& batch);
  void keep(const Batch& batch, const AttentionTask& task, int head, int layer, KVCache& cache);
  void attend(const Batch& batch, int layer, KVCache& cache);
  void widen(const LayerWeights& layer, const Rows& normed, int num_rows, float* hidden);
  void rotate(float* heads, int num_heads, int token) const;
  bool is_last(int layer) const { return layer == spec_.num_layers - 1; }
  // [rows, size] to [num_logit_rows, size]
  float* logit_rows_of(const Batch& batch, const float* rows, int64_t size, Buffer<float>& copy);

  // Calls work(row, thread) for each row, on all threads.
  template <class Work>
  void for_rows(int num_rows, const Work& work) {
    pool_.run((num_rows + kRowsPerTask - 1) / kRowsPerTask, [&](int task, int thread) {
      const int end = std::min(num_rows, (task + 1) * kRowsPerTask);
      for (int row = task * kRowsPerTask; row < end; ++row) work(row, thread);
    });
  }

  bool rounds(const Matrix& reader) const {
    return reader.dtype() == Dtype::kBFloat16 && kernels_.round_bf16;
  }

  // floats(row, thread) gives a row's k numbers. The result lives until the next call.
  template <class Floats>
  Rows quantize_rows(int num_rows, int k, const Floats& floats) {
    const int64_t stride = round_up(k, kGroupSize), num_groups = stride / kGroupSize;
    int8_t* values = quantized_.at_least(num_rows * stride);
    float* scales = quantized_scales_.at_least(num_rows);
    int32_t* sums = quantized_sums_.at_least(num_rows);
    int32_t* group_sums = quantized_group_sums_.at_least(num_rows * num_groups);
    int16_t* wide = quantized_wide_.at_least(num_rows * stride);
    for_rows(num_rows, [&](int64_t row, int thread) {
      kernels_.quantize(floats(row, thread), k, values + row * stride, scales + row, sums + row);
      if (weights_.dtype == Dtype::kInt4)
        kernels_.sum_groups(values + row * stride, k, group_sums + row * num_groups);
      else if (kernels_.widen)
        kernels_.widen(values + row * stride, k, wide + row * stride);
    });
    return {nullptr, {values, stride, scales, sums, group_sums, wide}};
  }

  template <class Floats>
  Rows round_rows(int num_rows, int k, const Floats& floats) {
    const int64_t stride = round_up(k, 2);
    uint16_t* rounded = rounded_.at_least(num_rows * stride);
    for_rows(num_rows, [&](int64_t row, int thread) {
      kernels_.round_bf16(floats(row, thread), k, rounded + row * stride);
    });
    return {rounded, {}};
  }

  const Spec spec_;
  const Weights weights_;
  const KVFormat kv_format_;
  const Kernels& kernels_;
  const AttentionKernels& attention_;  // of that format
  ThreadPool pool_;
  std::mutex mutex_;  // one forward or sample at a time: they share the threads and the scratch

  std::vector<Sampler> samplers_;  // one a thread
  std::vector<Scratch> scratch_;
  std::vector<AttentionTask> attention_tasks_;          // of this batch, the same in every layer
  std::vector<AttentionTask> shared_tasks_;             // those that are not alone
  std::vector<bool> has_logits_;                        // [T]
  Buffer<float> x_, normed_, qkv_, attended_, hidden_;  // [T, E], [T, E], [T, qkv], [T, H * D], [T, I]
  Buffer<float> last_x_, last_attended_;                // the rows of x_ and attended_ that have logits
  Buffer<float> cos_, sin_;                             // [T, rotary dimensions / 2]
  Buffer<uint16_t> rounded_;
  Buffer<int8_t> quantized_;
  Buffer<int16_t> quantized_wide_;
  Buffer<float> quantized_scales_;
  Buffer<int32_t> quantized_sums_, quantized_group_sums_;
};

}  // namespace pocketlm
