// From Python's arrays to packed weights and back: packing, and the checks of what was packed.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "decoder.h"

namespace pocketlm {

using AnyArray = nanobind::ndarray<nanobind::ro, nanobind::device::cpu>;

constexpr int kMaxThreads = 1024;
constexpr size_t kPanelAlignment = 64;  // a cache line

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

Dtype dtype_named(const std::string& name);

// The arrays of a packed matrix, not in int4: panels, and scales unless it is of floats.
nanobind::list pack_matrix(const std::string& name, const AnyArray& weight, const std::string& dtype,
                           int num_threads);

// Views of the arrays that a decoder of this spec needs, each checked. They live as long as `kept` does.
Weights read_packed_weights(const Spec& spec, const nanobind::dict& arrays, Dtype dtype,
                            std::vector<AnyArray>* kept);

}  // namespace pocketlm
