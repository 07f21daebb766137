// The Python side of the core. Every index and shape that comes from outside is checked here, once.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

#include "decoder.h"
#include "dispatch.h"
#include "packed_weights.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pocketlm {
namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Table = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutVector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutTable = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class Array>
int length(const Array& array) {
  return static_cast<int>(array.shape(0));
}

void require_length(const char* name, size_t found, size_t expected) {
  require(found == expected, std::string(name) + " has " + std::to_string(found) + " entries, expected " +
                                 std::to_string(expected));
}

void require_range(const char* name, const Vector<int32_t>& values, int low, int high) {
  for (size_t i = 0; i < values.size(); ++i)
    require(values.data()[i] >= low && values.data()[i] < high,
            std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(values.data()[i]) +
                ", allowed are " + std::to_string(low) + " to " + std::to_string(high - 1));
}

// [rows + 1] starts of a ragged list of `total` entries.
void require_starts(const char* name, const Vector<int32_t>& starts, int rows, size_t total) {
  require_length(name, starts.size(), rows + 1);
  bool rising = starts.data()[0] == 0 && static_cast<size_t>(starts.data()[rows]) == total;
  for (int i = 0; i < rows; ++i) rising = rising && starts.data()[i] <= starts.data()[i + 1];
  require(rising, std::string(name) + " must rise from 0 to " + std::to_string(total));
}

Activation activation_named(const std::string& name) {
  if (name == "linear") return Activation::kNone;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "quick_gelu") return Activation::kQuickGelu;
  if (name == "relu") return Activation::kRelu;
  if (name == "relu_squared") return Activation::kReluSquared;
  if (name == "sigmoid") return Activation::kSigmoid;
  if (name == "silu") return Activation::kSilu;
  if (name == "tanh") return Activation::kTanh;
  throw std::invalid_argument("unknown activation " + name);
}

Spec spec_from(nb::handle python) {
  const auto integer = [&](const char* name, int low) {
    const int value = nb::cast<int>(python.attr(name));
    require(value >= low,
            std::string(name) + " is " + std::to_string(value) + ", must be at least " + std::to_string(low));
    return value;
  };
  Spec spec;
  spec.vocab_size = integer("vocab_size", 1);
  spec.hidden_size = integer("hidden_size", 1);
  spec.num_layers = integer("num_layers", 1);
  spec.num_heads = integer("num_heads", 1);
  spec.num_kv_heads = integer("num_kv_heads", 1);
  spec.head_dim = integer("head_dim", 1);
  spec.intermediate_size = integer("intermediate_size", 1);
  spec.max_positions = integer("max_positions", 1);
  spec.position_offset = integer("position_offset", 0);
  const auto norm = nb::cast<std::string>(python.attr("norm"));
  require(norm == "layer" || norm == "rms", "unknown norm " + norm);
  spec.norm = norm == "layer" ? Norm::kLayer : Norm::kRms;
  spec.norm_epsilon = nb::cast<float>(python.attr("norm_epsilon"));
  spec.activation = activation_named(nb::cast<std::string>(python.attr("activation")));
  spec.gated_mlp = nb::cast<bool>(python.attr("gated_mlp"));
  spec.parallel_residual = nb::cast<bool>(python.attr("parallel_residual"));
  spec.embedding_scale = nb::cast<float>(python.attr("embedding_scale"));
  for (nb::handle scale : python.attr("attention_scales"))
    spec.attention_scales.push_back(nb::cast<float>(scale));
  for (nb::handle frequency : python.attr("rotary_frequencies"))
    spec.rotary_frequencies.push_back(nb::cast<double>(frequency));
  require_length("attention_scales", spec.attention_scales.size(), spec.num_layers);
  require(spec.num_heads % spec.num_kv_heads == 0, "num_heads must be a multiple of num_kv_heads");
  require(2 * spec.rotary_frequencies.size() <= static_cast<size_t>(spec.head_dim),
          "rotary_frequencies must not be more than half of head_dim");
  // 8-bit sums: 255 * 127 * K must fit in 32 bits.
  require(std::max({spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim}) < 65536,
          "matrices with 65536 or more inputs are not supported");
  return spec;
}

struct PyDecoder {
  std::vector<AnyArray> arrays;  // the decoder views these
  std::unique_ptr<Decoder> decoder;

  PyDecoder(nb::handle python_spec, nb::dict python_weights, const std::string& dtype, int num_threads,
            const std::string& isa) {
    const Kernels* kernels = find_kernels(isa);
    require(kernels != nullptr, "instruction set " + isa + " is not available");
    require(num_threads >= 1 && num_threads <= kMaxThreads, "num_threads must be 1 to 1024");
    const Spec spec = spec_from(python_spec);
    const Weights weights = read_packed_weights(spec, python_weights, dtype_named(dtype), &arrays);
    decoder = std::make_unique<Decoder>(spec, weights, num_threads, *kernels);
  }
};

void forward(PyDecoder& self, Vector<int32_t> token_ids, Vector<int32_t> positions,
             Vector<int32_t> slot_mapping, Table<int32_t> block_tables, Vector<int32_t> context_lens,
             Vector<int32_t> query_starts, Vector<int32_t> logit_rows, KVCache& cache,
             OutTable<float> logits) {
  const Spec& spec = self.decoder->spec();
  const int num_tokens = length(token_ids), num_sequences = length(context_lens);
  const int max_blocks = static_cast<int>(block_tables.shape(1));
  require_length("positions", positions.size(), num_tokens);
  require_length("slot_mapping", slot_mapping.size(), num_tokens);
  require_length("block_tables", block_tables.shape(0), num_sequences);
  require_range("token_ids", token_ids, 0, spec.vocab_size);
  require_range("positions", positions, 0, spec.max_positions);
  require_range("slot_mapping", slot_mapping, 0, cache.num_blocks() * kBlockSize);
  require_range("logit_rows", logit_rows, 0, num_tokens);
  require_starts("query_starts", query_starts, num_sequences, num_tokens);
  require_range("context_lens", context_lens, 1, std::min(max_blocks * kBlockSize, spec.max_positions) + 1);
  for (int s = 0; s < num_sequences; ++s) {
    const int32_t* table = block_tables.data() + static_cast<int64_t>(s) * max_blocks;
    for (int b = 0; b < max_blocks; ++b)
      require(table[b] >= 0 && table[b] < cache.num_blocks(),
              "block_tables holds a block that does not exist");
    for (int t = query_starts.data()[s]; t < query_starts.data()[s + 1]; ++t)
      require(positions.data()[t] < context_lens.data()[s], "a position lies beyond its context");
  }
  require(logits.shape(0) == logit_rows.size() && logits.shape(1) == static_cast<size_t>(spec.vocab_size),
          "logits must be [logit_rows, vocab_size]");
  const Batch batch = {num_tokens,          num_sequences,    max_blocks,          length(logit_rows),
                       token_ids.data(),    positions.data(), slot_mapping.data(), block_tables.data(),
                       query_starts.data(), logit_rows.data()};
  nb::gil_scoped_release release;
  self.decoder->forward(batch, cache, logits.data());
}

void sample(PyDecoder& self, Table<float> logits, Vector<float> temperature, Vector<int32_t> top_k,
            Vector<float> top_p, Vector<float> min_p, Vector<float> repetition_penalty,
            Vector<float> presence_penalty, Vector<float> frequency_penalty, Vector<uint64_t> seed,
            Vector<int32_t> position, Vector<int32_t> history, Vector<int32_t> history_starts,
            Vector<int32_t> num_prompt_tokens, Vector<int32_t> bias_ids, Vector<float> bias_values,
            Vector<int32_t> bias_starts, Vector<int32_t> banned_ids, Vector<int32_t> banned_starts,
            Vector<int32_t> num_logprobs, OutVector<int32_t> token_ids, OutTable<int32_t> logprob_ids,
            OutTable<float> logprobs, OutTable<int32_t> ranks) {
  const int vocab_size = self.decoder->spec().vocab_size;
  const int num_rows = length(logits);
  const size_t width = logprob_ids.shape(1);
  require_length("a row of logits", logits.shape(1), vocab_size);
  for (const size_t size : {temperature.size(), top_k.size(), top_p.size(), min_p.size(),
                            repetition_penalty.size(), presence_penalty.size(), frequency_penalty.size(),
                            seed.size(), position.size(), num_prompt_tokens.size(), num_logprobs.size(),
                            token_ids.size(), logprob_ids.shape(0), logprobs.shape(0), ranks.shape(0)})
    require_length("a sampling input", size, num_rows);
  require_starts("history_starts", history_starts, num_rows, history.size());
  require_starts("bias_starts", bias_starts, num_rows, bias_ids.size());
  require_starts("banned_starts", banned_starts, num_rows, banned_ids.size());
  require_length("bias_values", bias_values.size(), bias_ids.size());
  require_length("a row of logprobs", logprobs.shape(1), width);
  require_length("a row of ranks", ranks.shape(1), width);
  require_range("history", history, 0, vocab_size);
  require_range("bias_ids", bias_ids, 0, vocab_size);
  require_range("banned_ids", banned_ids, 0, vocab_size);
  require_range("num_logprobs", num_logprobs, -1, static_cast<int>(width));
  for (int r = 0; r < num_rows; ++r) {
    const int size = history_starts.data()[r + 1] - history_starts.data()[r];
    require(size == 0 || (num_prompt_tokens.data()[r] >= 0 && num_prompt_tokens.data()[r] <= size),
            "num_prompt_tokens must lie within the history");
  }
  const auto span = [](const Vector<int32_t>& values, const Vector<int32_t>& starts, int r) {
    return Span<int32_t>{values.data() + starts.data()[r], starts.data()[r + 1] - starts.data()[r]};
  };
  nb::gil_scoped_release release;
  self.decoder->sample(num_rows, [&](int r, Sampler& sampler) {
    const float* row_logits = logits.data() + static_cast<int64_t>(r) * vocab_size;
    const SamplingRow row = {
        .temperature = temperature.data()[r],
        .top_p = top_p.data()[r],
        .min_p = min_p.data()[r],
        .repetition_penalty = repetition_penalty.data()[r],
        .presence_penalty = presence_penalty.data()[r],
        .frequency_penalty = frequency_penalty.data()[r],
        .top_k = top_k.data()[r],
        .seed = seed.data()[r],
        .position = position.data()[r],
        .history = span(history, history_starts, r),
        .num_prompt_tokens = num_prompt_tokens.data()[r],
        .bias_ids = span(bias_ids, bias_starts, r),
        .bias_values = bias_values.data() + bias_starts.data()[r],
        .banned_ids = span(banned_ids, banned_starts, r),
    };
    const int32_t token_id = sampler.sample(row_logits, row);
    token_ids.data()[r] = token_id;
    if (token_id >= 0 && num_logprobs.data()[r] >= 0)
      sampler.report(row_logits, token_id, num_logprobs.data()[r],
                     {logprob_ids.data() + r * width, logprobs.data() + r * width, ranks.data() + r * width});
  });
}

void log_probabilities(PyDecoder& self, Table<float> logits, Vector<int32_t> token_ids,
                       Vector<int32_t> num_logprobs, OutTable<int32_t> logprob_ids, OutTable<float> logprobs,
                       OutTable<int32_t> ranks) {
  const int vocab_size = self.decoder->spec().vocab_size;
  const int num_rows = length(logits);
  const size_t width = logprob_ids.shape(1);
  require_length("a row of logits", logits.shape(1), vocab_size);
  for (const size_t size :
       {token_ids.size(), num_logprobs.size(), logprob_ids.shape(0), logprobs.shape(0), ranks.shape(0)})
    require_length("an input", size, num_rows);
  require_length("a row of logprobs", logprobs.shape(1), width);
  require_length("a row of ranks", ranks.shape(1), width);
  require_range("token_ids", token_ids, 0, vocab_size);
  require_range("num_logprobs", num_logprobs, 0, static_cast<int>(width));
  nb::gil_scoped_release release;
  self.decoder->sample(num_rows, [&](int r, Sampler& sampler) {
    const float* row_logits = logits.data() + static_cast<int64_t>(r) * vocab_size;
    if (sampler.all_finite(row_logits))
      sampler.report(row_logits, token_ids.data()[r], num_logprobs.data()[r],
                     {logprob_ids.data() + r * width, logprobs.data() + r * width, ranks.data() + r * width});
  });
}

}  // namespace
}  // namespace pocketlm

NB_MODULE(_core, m) {
  using namespace pocketlm;
  m.doc() = "The compiled core of pocketlm; src/pocketlm/kernels/compiled.py is its Python face.";
  m.attr("BLOCK_SIZE") = kBlockSize;
  m.attr("PANEL_COLUMNS") = kPanelColumns;
  m.attr("PANEL_ALIGNMENT") = kPanelAlignment;
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->isa);
    return names;
  });
  m.def("padded_head_dim", &padded_head_dim, "head_dim"_a);

  m.def("pack_matrix", &pack_matrix, "name"_a, "weight"_a.noconvert(), "dtype"_a, "num_threads"_a);

  nb::class_<KVCache>(m, "KVCache")
      .def_prop_ro("num_blocks", &KVCache::num_blocks)
      .def_prop_ro("num_bytes", &KVCache::num_bytes);

  nb::class_<PyDecoder>(m, "Decoder")
      .def(nb::init<nb::handle, nb::dict, const std::string&, int, const std::string&>(), "spec"_a,
           "weights"_a, "dtype"_a, "num_threads"_a, "isa"_a)
      .def(
          "new_kv_cache",
          [](const PyDecoder& self, int num_blocks) {
            require(num_blocks >= 1 && num_blocks < (1 << 26), "num_blocks must be 1 to 2^26 - 1");
            return KVCache(self.decoder->spec(), self.decoder->kv_format(), num_blocks);
          },
          "num_blocks"_a)
      .def("forward", &forward, "token_ids"_a.noconvert(), "positions"_a.noconvert(),
           "slot_mapping"_a.noconvert(), "block_tables"_a.noconvert(), "context_lens"_a.noconvert(),
           "query_starts"_a.noconvert(), "logit_rows"_a.noconvert(), "kv_cache"_a, "logits"_a.noconvert())
      .def("sample", &sample, "logits"_a.noconvert(), "temperature"_a.noconvert(), "top_k"_a.noconvert(),
           "top_p"_a.noconvert(), "min_p"_a.noconvert(), "repetition_penalty"_a.noconvert(),
           "presence_penalty"_a.noconvert(), "frequency_penalty"_a.noconvert(), "seed"_a.noconvert(),
           "position"_a.noconvert(), "history"_a.noconvert(), "history_starts"_a.noconvert(),
           "num_prompt_tokens"_a.noconvert(), "bias_ids"_a.noconvert(), "bias_values"_a.noconvert(),
           "bias_starts"_a.noconvert(), "banned_ids"_a.noconvert(), "banned_starts"_a.noconvert(),
           "num_logprobs"_a.noconvert(), "token_ids"_a.noconvert(), "logprob_ids"_a.noconvert(),
           "logprobs"_a.noconvert(), "ranks"_a.noconvert())
      .def("log_probabilities", &log_probabilities, "logits"_a.noconvert(), "token_ids"_a.noconvert(),
           "num_logprobs"_a.noconvert(), "logprob_ids"_a.noconvert(), "logprobs"_a.noconvert(),
           "ranks"_a.noconvert())
      .def("worker_cpu_s", [](PyDecoder& self) { return self.decoder->worker_cpu_seconds(); });
}
