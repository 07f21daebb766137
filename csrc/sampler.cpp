#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "philox.h"

namespace pocketlm {

int32_t Sampler::sample(const float* logits, const SamplingRow& row) {
  Peak best = kernels_->peak(logits, vocab_size_);
  if (!best.all_finite) return -1;
  if (const float* changed = processed(logits, row); changed != logits) {
    logits = changed;
    best = kernels_->peak(logits, vocab_size_);
  }
  if (row.temperature == 0.0f) return best.index;

  scaled_.resize(vocab_size_);
  kernels_->shift_and_divide(logits, vocab_size_, logits[best.index], row.temperature, scaled_.data());
  float cutoff = -INFINITY;
  if (row.top_k > 0 && row.top_k < vocab_size_) cutoff = cutoff_of_top_k(row.top_k);
  if (row.top_p < 1.0f) cutoff = cutoff_of_top_p(row.top_p, cutoff);
  if (row.min_p > 0.0f) cutoff = std::max(cutoff, std::log(row.min_p));
  const double total = weigh(scaled_.data(), vocab_size_, cutoff);
  return token_at(philox_uniform(row.seed, static_cast<uint64_t>(row.position)) * total);
}

double Sampler::weigh(const float* scaled, int n, float cutoff) {
  weights_.resize(vocab_size_);
  sums_.resize((vocab_size_ + kSumLength - 1) / kSumLength);
  kernels_->exp_above(scaled, n, cutoff, weights_.data(), sums_.data());
  return std::accumulate(sums_.begin(), sums_.begin() + (n + kSumLength - 1) / kSumLength, 0.0);
}

// The first token at which the weights passed are more than `target`; the last that has a weight, should
// rounding let the target slip past all.
int32_t Sampler::token_at(double target) const {
  double passed = 0.0, passed_before = 0.0;
  int piece = 0;
  for (int i = 0; i < static_cast<int>(sums_.size()); ++i) {
    if (sums_[i] == 0.0f) continue;
    piece = i;
    passed_before = passed;
    passed += sums_[i];
    if (passed > target) break;
  }
  const int start = piece * kSumLength, end = std::min(start + kSumLength, vocab_size_);
  int32_t last = start;
  for (int i = start; i < end; ++i) {
    if (weights_[i] == 0.0f) continue;
    last = i;
    passed_before += weights_[i];
    if (passed_before > target) break;
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

// Few logits are more than the least of the best so far, so nearly all are passed over in vectors.
float Sampler::cutoff_of_top_k(int top_k) {
  candidates_.assign(scaled_.begin(), scaled_.begin() + top_k);  // a heap whose first is the least
  std::make_heap(candidates_.begin(), candidates_.end(), std::greater<>());
  for (int i = top_k;; ++i) {
    i = kernels_->first_above(scaled_.data(), vocab_size_, i, candidates_.front());
    if (i == vocab_size_) return candidates_.front();
    std::pop_heap(candidates_.begin(), candidates_.end(), std::greater<>());
    candidates_.back() = scaled_[i];
    std::push_heap(candidates_.begin(), candidates_.end(), std::greater<>());
  }
}

// The logit at which the most likely tokens have top_p of the probability of all that reach `cutoff`.
float Sampler::cutoff_of_top_p(float top_p, float cutoff) {
  const double total = weigh(scaled_.data(), vocab_size_, cutoff);
  double missing = static_cast<double>(top_p) * total;
  // Tokens below (1 - top_p) / V of the total have less than 1 - top_p of it between them, so the cutoff is
  // not among them; the margin is for rounding.
  const double least = std::log((total - missing) / vocab_size_) - 0.01;
  candidates_.resize(vocab_size_ + 16);
  int size = kernels_->gather(scaled_.data(), vocab_size_, std::max(cutoff, static_cast<float>(least)),
                              candidates_.data());
  // Halve what the cutoff is among: it is in the upper half if that has what is missing.
  float* first = candidates_.data();
  while (size > 1) {
    const int half = size / 2;
    std::nth_element(first, first + half, first + size, std::greater<>());
    const double passed = weigh(first, half, -INFINITY);
    if (passed >= missing) {
      size = half;
    } else {
      missing -= passed;
      first += half;
      size -= half;
    }
  }
  return *first;
}

int Sampler::report(const float* logits, int32_t token_id, int num_most_likely, const SampledRow& out) {
  num_most_likely = std::min(num_most_likely, vocab_size_);
  const auto is_better = [logits](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  order_.resize(num_most_likely);
  std::iota(order_.begin(), order_.end(), 0);
  std::make_heap(order_.begin(), order_.end(), is_better);  // the first is the worst of them
  for (int i = num_most_likely; num_most_likely > 0; ++i) {
    i = kernels_->first_above(logits, vocab_size_, i, logits[order_.front()]);
    if (i == vocab_size_) break;
    std::pop_heap(order_.begin(), order_.end(), is_better);
    order_.back() = i;
    std::push_heap(order_.begin(), order_.end(), is_better);
  }
  std::sort_heap(order_.begin(), order_.end(), is_better);

  const float best = logits[kernels_->peak(logits, vocab_size_).index];
  scaled_.resize(vocab_size_);
  kernels_->shift_and_divide(logits, vocab_size_, best, 1.0f, scaled_.data());
  const double total = weigh(scaled_.data(), vocab_size_, -INFINITY);
  int num_above = 0;
  for (int i = 0; i < vocab_size_; ++i) num_above += logits[i] > logits[token_id];
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
