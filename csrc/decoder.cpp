#include "decoder.h"

#include <algorithm>
#include <cmath>

namespace pocketlm {

namespace {

constexpr int kQueriesPerTask = 16;
constexpr int kTasksPerThread = 16;  // at least, where there is enough to do
constexpr int kRowsPerPanel = 96;    // rows that pass a weight panel before another thread may take over

int num_pieces(int size, int piece) { return (size + piece - 1) / piece; }

// A row of a table: where it lies if it can be read there, else copied to `copy`.
const float* row_of(const Tensor& table, int64_t row, float* copy) {
  if (!table.is_half && table.column_stride == 1)
    return static_cast<const float*>(table.data) + row * table.row_stride;
  for (int64_t i = 0; i < table.columns; ++i) copy[i] = table.at(row, i);
  return copy;
}

KVFormat kv_format_beside(Dtype weights) {
  if (weights == Dtype::kFloat32) return KVFormat::kFloat32;
  return is_float(weights) ? KVFormat::kFloat16 : KVFormat::kInt8;
}

}  // namespace

KVCache::KVCache(const Spec& spec, KVFormat format, int num_blocks)
    : num_blocks_(num_blocks),
      head_stride_(head_block_bytes(format, spec.head_dim)),
      block_stride_(spec.num_kv_heads * head_stride_),
      layer_stride_(num_blocks * block_stride_),
      keys_(spec.num_layers * layer_stride_),
      values_(spec.num_layers * layer_stride_) {}

Decoder::Decoder(const Spec& spec, const Weights& weights, int num_threads, const Kernels& kernels)
    : spec_(spec),
      weights_(weights),
      kv_format_(kv_format_beside(weights.dtype)),
      kernels_(kernels),
      attention_(kernels.attention[static_cast<int>(kv_format_)]),
      pool_(num_threads) {
  samplers_.resize(pool_.num_threads(), Sampler(kernels, spec.vocab_size));
  scratch_.resize(pool_.num_threads());
  for (Scratch& scratch : scratch_) {
    scratch.attention =
        Buffer<float>(static_cast<int64_t>(kMaxQueries) *
                      (round_up(spec.max_positions, kBlockSize) + padded_head_dim(spec.head_dim)));
    scratch.queries.resize(kMaxQueries * (spec.num_heads / spec.num_kv_heads));
    scratch.row = Buffer<float>(spec.hidden_size);
  }
}

void Decoder::forward(const Batch& batch, KVCache& cache, float* logits) {
  std::lock_guard lock(mutex_);
  const int num_tokens = batch.num_tokens;
  plan_attention(batch);
  embed(batch);
  prepare_rotation(batch);

  const int attended_size = spec_.num_heads * spec_.head_dim;
  int num_rows = num_tokens;
  float* x = x_.data();
  float* qkv = qkv_.at_least(static_cast<int64_t>(num_tokens) * spec_.qkv_size());
  const float* attended = attended_.at_least(static_cast<int64_t>(num_tokens) * attended_size);
  for (int i = 0; i < spec_.num_layers; ++i) {
    const LayerWeights& layer = weights_.layers[i];
    const NormWeights& mlp_norm = layer.mlp_norm.weight ? layer.mlp_norm : layer.attention_norm;
    linear(layer.qkv, norm_rows(layer.attention_norm, x, num_rows, layer.qkv), num_rows, qkv);
    attend(batch, i, cache);
    if (is_last(i)) {  // of the other rows nothing is read any more
      num_rows = batch.num_logit_rows;
      x = logit_rows_of(batch, x, spec_.hidden_size, last_x_);
      attended = logit_rows_of(batch, attended, attended_size, last_attended_);
    }
    float* hidden = hidden_.at_least(static_cast<int64_t>(num_rows) * spec_.intermediate_size);
    const auto expand = [&] { widen(layer, norm_rows(mlp_norm, x, num_rows, layer.up), num_rows, hidden); };
    if (spec_.parallel_residual) expand();  // before x has attention's output
    linear(layer.attention_out, rows_for(layer.attention_out, attended, num_rows), num_rows, x,
           Activation::kNone, Combine::kAdd);
    if (!spec_.parallel_residual) expand();
    linear(layer.down, rows_for(layer.down, hidden, num_rows), num_rows, x, Activation::kNone, Combine::kAdd);
  }
  linear(weights_.head, norm_rows(weights_.final_norm, x, num_rows, weights_.head), num_rows, logits);
}

float* Decoder::logit_rows_of(const Batch& batch, const float* rows, int64_t size, Buffer<float>& copy) {
  float* copied = copy.at_least(batch.num_logit_rows * size);
  for (int r = 0; r < batch.num_logit_rows; ++r)
    std::copy_n(rows + batch.logit_rows[r] * size, size, copied + r * size);
  return copied;
}

void Decoder::embed(const Batch& batch) {
  const int64_t size = spec_.hidden_size;
  float* x = x_.at_least(batch.num_tokens * size);
  for_rows(batch.num_tokens, [&](int64_t t, int thread) {
    float *row = x + t * size, *copy = scratch_[thread].row.data();
    const float* token = row_of(weights_.token_embedding, batch.token_ids[t], copy);
    for (int64_t i = 0; i < size; ++i) row[i] = token[i] * spec_.embedding_scale;
    if (!weights_.position_embedding.data) return;
    const float* position =
        row_of(weights_.position_embedding, batch.positions[t] + spec_.position_offset, copy);
    for (int64_t i = 0; i < size; ++i) row[i] += position[i];
  });
}

void Decoder::prepare_rotation(const Batch& batch) {
  const int64_t half = static_cast<int64_t>(spec_.rotary_frequencies.size());
  float* cos = cos_.at_least(batch.num_tokens * half);
  float* sin = sin_.at_least(batch.num_tokens * half);
  for (int t = 0; t < batch.num_tokens; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = batch.positions[t] * spec_.rotary_frequencies[i];
      cos[t * half + i] = static_cast<float>(std::cos(angle));
      sin[t * half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

// Entries i and i + half of each head turn together.
void Decoder::rotate(float* heads, int num_heads, int token) const {
  const int64_t half = static_cast<int64_t>(spec_.rotary_frequencies.size());
  const float *cos = cos_.data() + token * half, *sin = sin_.data() + token * half;
  for (int h = 0; h < num_heads; ++h) {
    float* first = heads + static_cast<int64_t>(h) * spec_.head_dim;
    float* second = first + half;
    for (int64_t i = 0; i < half; ++i) {
      const float a = first[i], b = second[i];
      first[i] = a * cos[i] - b * sin[i];
      second[i] = b * cos[i] + a * sin[i];
    }
  }
}

Decoder::Rows Decoder::norm_rows(const NormWeights& weights, const float* x, int num_rows,
                                 const Matrix& reader) {
  const int64_t size = spec_.hidden_size;
  const auto norm = [&](int64_t row, float* out) {
    kernels_.norm(spec_.norm, x + row * size, weights.weight, weights.bias, spec_.norm_epsilon,
                  spec_.hidden_size, out);
  };
  const auto normed_row = [&](int64_t row, int thread) {
    norm(row, scratch_[thread].row.data());
    return scratch_[thread].row.data();
  };
  if (!is_float(reader.dtype())) return quantize_rows(num_rows, spec_.hidden_size, normed_row);
  if (rounds(reader)) return round_rows(num_rows, spec_.hidden_size, normed_row);
  float* normed = normed_.at_least(num_rows * size);
  for_rows(num_rows, [&](int64_t row, int) { norm(row, normed + row * size); });
  return {normed, {}};
}

Decoder::Rows Decoder::rows_for(const Matrix& reader, const float* x, int num_rows) {
  const auto row_of_x = [&](int64_t row, int) { return x + row * reader.k(); };
  if (!is_float(reader.dtype())) return quantize_rows(num_rows, reader.k(), row_of_x);
  if (rounds(reader)) return round_rows(num_rows, reader.k(), row_of_x);
  return {x, {}};
}

// out = combine(out, activation(x W + b)); x [rows, K], out [rows, N]
void Decoder::linear(const Matrix& matrix, const Rows& x, int num_rows, float* out, Activation activation,
                     Combine combine) {
  const Output output = {out, matrix.n(), matrix.n(), matrix.bias(), activation, combine};
  const int num_panels = num_pieces(matrix.n(), kPanelColumns);
  const int num_row_pieces = num_pieces(num_rows, kRowsPerPanel);
  pool_.run(num_panels * num_row_pieces, [&](int task, int) {
    const int first = task % num_row_pieces * kRowsPerPanel;
    matrix.multiply(kernels_, task / num_row_pieces, x.numbers, x.quantized, first,
                    std::min(kRowsPerPanel, num_rows - first), output);
  });
}

// Tokens of one sequence share a pass over its keys and values. A task is some of them and some heads: long
// enough to be worth taking, short enough that all threads have some.
void Decoder::plan_attention(const Batch& batch) {
  const int num_heads = spec_.num_kv_heads;
  const int fair_share = batch.num_tokens * num_heads / (kTasksPerThread * pool_.num_threads());
  attention_tasks_.clear();
  shared_tasks_.clear();
  has_logits_.assign(batch.num_tokens, false);
  for (int r = 0; r < batch.num_logit_rows; ++r) has_logits_[batch.logit_rows[r]] = true;
  for (int s = 0; s < batch.num_sequences; ++s) {
    const int start = batch.query_starts[s], end = batch.query_starts[s + 1];
    const int tallest = std::clamp(end - start, 1, kMaxQueries);
    const int heads = std::clamp(std::min(fair_share, kQueriesPerTask) / tallest, 1, num_heads);
    const bool alone = end - start <= kMaxQueries;
    for (int h = 0; h < num_heads; h += heads) {
      for (int t = start; t < end; t += kMaxQueries) {
        attention_tasks_.push_back(
            {s, t, std::min(kMaxQueries, end - t), h, std::min(heads, num_heads - h), alone});
        if (!alone) shared_tasks_.push_back(attention_tasks_.back());
      }
    }
  }
}

// Keys and values of a task's tokens and one head go into the cache; keys and queries turn before.
void Decoder::keep(const Batch& batch, const AttentionTask& task, int head, int layer, KVCache& cache) {
  const int head_dim = spec_.head_dim, heads_per_kv_head = spec_.num_heads / spec_.num_kv_heads;
  for (int t = task.first_token; t < task.first_token + task.num_tokens; ++t) {
    float* token = qkv_.data() + static_cast<int64_t>(t) * spec_.qkv_size();
    float* key = token + static_cast<int64_t>(spec_.num_heads + head) * head_dim;
    const float* value = key + static_cast<int64_t>(spec_.num_kv_heads) * head_dim;
    if (!spec_.rotary_frequencies.empty()) {
      rotate(token + static_cast<int64_t>(head) * heads_per_kv_head * head_dim, heads_per_kv_head, t);
      rotate(key, 1, t);
    }
    const int64_t block = batch.slot_mapping[t] / kBlockSize;
    const int64_t place = cache.start_of(layer, head) + block * cache.block_stride_;
    attention_.keep(key, value, head_dim, batch.slot_mapping[t] % kBlockSize, cache.keys_.data() + place,
                    cache.values_.data() + place);
  }
}

// A task whose tokens no other task attends to keeps the keys and values of a head right before it attends:
// the head before has asked for their place. The others keep theirs before any of them attends. In the last
// layer only tokens with logits attend.
void Decoder::attend(const Batch& batch, int layer, KVCache& cache) {
  const int head_dim = spec_.head_dim, num_heads = spec_.num_heads;
  const int heads_per_kv_head = num_heads / spec_.num_kv_heads;
  const float scale = spec_.attention_scales[layer];
  pool_.run(static_cast<int>(shared_tasks_.size()), [&](int index, int) {
    const AttentionTask& task = shared_tasks_[index];
    for (int g = task.first_head; g < task.first_head + task.num_heads; ++g)
      keep(batch, task, g, layer, cache);
  });
  pool_.run(static_cast<int>(attention_tasks_.size()), [&](int index, int thread) {
    const AttentionTask& task = attention_tasks_[index];
    const int32_t* block_table = batch.block_tables + static_cast<int64_t>(task.sequence) * batch.max_blocks;
    Query* queries = scratch_[thread].queries.data();
    float* scratch = scratch_[thread].attention.data();
    for (int g = task.first_head; g < task.first_head + task.num_heads; ++g) {
      if (task.alone) keep(batch, task, g, layer, cache);
      int num_queries = 0;
      for (int64_t t = task.first_token; t < task.first_token + task.num_tokens; ++t) {
        if (is_last(layer) && !has_logits_[t]) continue;
        for (int h = g * heads_per_kv_head; h < (g + 1) * heads_per_kv_head; ++h)
          queries[num_queries++] = {qkv_.data() + t * spec_.qkv_size() + h * head_dim, batch.positions[t] + 1,
                                    attended_.data() + (t * num_heads + h) * head_dim};
      }
      const int64_t start = cache.start_of(layer, g);
      const HeadBlocks blocks = {cache.keys_.data() + start, cache.values_.data() + start,
                                 cache.block_stride_, block_table};
      attention_.attend(queries, num_queries, blocks, head_dim, scale, scratch);
    }
  });
}

// hidden = activation(up(normed)), or activation(gate(normed)) * up(normed)
void Decoder::widen(const LayerWeights& layer, const Rows& normed, int num_rows, float* hidden) {
  if (spec_.gated_mlp) {
    linear(layer.gate, normed, num_rows, hidden, spec_.activation);
    linear(layer.up, normed, num_rows, hidden, Activation::kNone, Combine::kMultiply);
  } else {
    linear(layer.up, normed, num_rows, hidden, spec_.activation);
  }
}

}  // namespace pocketlm
