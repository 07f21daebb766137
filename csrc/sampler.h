// A row of logits to a token. The definition, in NumPy, is src/pocketlm/kernels/reference_sampler.py.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace pocketlm {

template <class T>
struct Span {
  const T* data;
  int size;
  const T* begin() const { return data; }
  const T* end() const { return data + size; }
};

struct SamplingRow {
  float temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
  int top_k;
  uint64_t seed;
  int position;
  Span<int32_t> history;  // prompt, then output
  int num_prompt_tokens;
  Span<int32_t> bias_ids;
  const float* bias_values;
  Span<int32_t> banned_ids;
};

struct SampledRow {
  int32_t* ids;  // a token, then the most likely ones
  float* logprobs;
  int32_t* ranks;
};

// Works on one row at a time; keep one for each thread.
class Sampler {
 public:
  Sampler(const Kernels& kernels, int vocab_size) : kernels_(&kernels), vocab_size_(vocab_size) {}

  // The token, or -1 if a logit is not finite.
  int32_t sample(const float* logits, const SamplingRow& row);
  bool all_finite(const float* logits) const { return kernels_->peak(logits, vocab_size_).all_finite; }
  // Of the raw logits; num_most_likely may exceed the vocabulary. Returns how many entries were written.
  int report(const float* logits, int32_t token_id, int num_most_likely, const SampledRow& out);

 private:
  const float* processed(const float* logits, const SamplingRow& row);
  float cutoff_of_top_k(int top_k);
  float cutoff_of_top_p(float top_p, float cutoff);
  // Weights and their sums of n scaled logits; the sum of all.
  double weigh(const float* scaled, int n, float cutoff);
  int32_t token_at(double target) const;

  const Kernels* kernels_;
  int vocab_size_;
  std::vector<float> processed_, scaled_, weights_;  // [V]
  std::vector<float> sums_;                          // of each kSumLength weights
  std::vector<float> candidates_;
  std::vector<int32_t> counts_;  // [V]
  std::vector<int32_t> order_;   // the most likely tokens
};

}  // namespace pocketlm
