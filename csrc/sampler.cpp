#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "philox.h"

namespace pocketlm {

int32_t Sampler::sample(const float* logits, const SamplingRow& row) {
  if (!all_finite(logits)) return -1;
  logits = processed(logits, row);
  const int best = kernels_->argmax(logits, vocab_size_);
  if (row.temperature == 0.0f) return best;

  scaled_.resize(vocab_size_);
  weights_.resize(vocab_size_);
  kernels_->shift_and_divide(logits, vocab_size_, logits[best], row.temperature, scaled_.data());
  float cutoff = -INFINITY;
  if (row.top_k > 0 && row.top_k < vocab_size_) cutoff = cutoff_of_top_k(row.top_k);
  if (row.top_p < 1.0f) cutoff = cutoff_of_top_p(row.top_p, cutoff);
  if (row.min_p > 0.0f) cutoff = std::max(cutoff, std::log(row.min_p));
  kernels_->exp_above(scaled_.data(), vocab_size_, cutoff, weights_.data());

  const double total = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  const double target = philox_uniform(row.seed, static_cast<uint64_t>(row.position)) * total;
  double passed = 0.0;
  int last = best;  // the last token that can be drawn, should rounding let the target slip past all
  for (int i = 0; i < vocab_size_; ++i) {
    if (weights_[i] == 0.0f) continue;
    passed += weights_[i];
    if (passed > target) return i;
    last = i;
  }
  return last;
}

// logit_bias, banned tokens, then the repetition, frequency and presence penalties.
const float* Sampler::processed(const float* logits, const SamplingRow& row) {
  if (row.bias_ids.size == 0 && row.banned_ids.size == 0 && row.history.size == 0) return logits;
  processed_.assign(logits, logits + vocab_size_);
  for (int i = 0; i < row.bias_ids.size; ++i) processed_[row.bias_ids.data[i]] += row.bias_values[i];
  for (const int32_t id : row.banned_ids) processed_[id] = -INFINITY;

  counts_.resize(vocab_size_, 0);  // all zero between calls
  for (const int32_t id : row.history) {
    if (counts_[id]++ > 0) continue;
    float& logit = processed_[id];
    logit = logit > 0.0f ? logit / row.repetition_penalty : logit * row.repetition_penalty;
  }
  for (const int32_t id : row.history) counts_[id] = 0;

  const Span<int32_t> generated = {row.history.data + row.num_prompt_tokens,
                                   row.history.size - row.num_prompt_tokens};
  for (const int32_t id : generated) ++counts_[id];
  for (const int32_t id : generated) {
    if (counts_[id] == 0) continue;  // met before
    processed_[id] -= row.frequency_penalty * static_cast<float>(counts_[id]);
    processed_[id] -= row.presence_penalty;
    counts_[id] = 0;
  }
  return processed_.data();
}

float Sampler::cutoff_of_top_k(int top_k) {
  sorted_ = scaled_;
  std::nth_element(sorted_.begin(), sorted_.begin() + (top_k - 1), sorted_.end(), std::greater<>());
  return sorted_[top_k - 1];
}

// The logit at which the most likely tokens have top_p of the probability of all that reach `cutoff`.
float Sampler::cutoff_of_top_p(float top_p, float cutoff) {
  sorted_.clear();
  for (const float logit : scaled_)
    if (logit >= cutoff) sorted_.push_back(logit);
  weights_.resize(vocab_size_);
  kernels_->exp_above(scaled_.data(), vocab_size_, cutoff, weights_.data());
  const double enough = static_cast<double>(top_p) * std::accumulate(weights_.begin(), weights_.end(), 0.0);

  // Sort from the top in growing pieces: the nucleus is nearly always a small part of the vocabulary.
  const int count = static_cast<int>(sorted_.size());
  double passed = 0.0;
  int done = 0;
  for (int piece = 256; done < count; piece *= 4) {
    const int end = std::min(done + piece, count);
    std::partial_sort(sorted_.begin() + done, sorted_.begin() + end, sorted_.end(), std::greater<>());
    kernels_->exp_above(sorted_.data() + done, end - done, -INFINITY, weights_.data() + done);
    for (; done < end; ++done) {
      passed += weights_[done];
      if (passed >= enough) return sorted_[done];
    }
  }
  return sorted_.back();
}

int Sampler::report(const float* logits, int32_t token_id, int num_most_likely, const SampledRow& out) {
  num_most_likely = std::min(num_most_likely, vocab_size_);
  order_.resize(vocab_size_);
  std::iota(order_.begin(), order_.end(), 0);
  std::partial_sort(order_.begin(), order_.begin() + num_most_likely, order_.end(), [logits](int a, int b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });

  const float best = logits[kernels_->argmax(logits, vocab_size_)];
  double total = 0.0;
  int num_above = 0;
  for (int i = 0; i < vocab_size_; ++i) {
    total += std::exp(static_cast<double>(logits[i]) - best);
    num_above += logits[i] > logits[token_id];
  }
  const double log_total = std::log(total);
  const auto write = [&](int column, int32_t id, int rank) {
    out.ids[column] = id;
    out.logprobs[column] = static_cast<float>(static_cast<double>(logits[id]) - best - log_total);
    out.ranks[column] = rank;
  };
  write(0, token_id, num_above + 1);
  for (int i = 0; i < num_most_likely; ++i) write(i + 1, order_[i], i + 1);
  return num_most_likely + 1;
}

}  // namespace pocketlm
