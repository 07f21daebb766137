// Asking for weights ahead of their use.
//
// A panel is read from memory once and from cache in all passes after the first. So that the first need not
// wait either, they ask in even shares for the panel that follows in memory: the same thread most often
// takes it next. A single pass is too fast for that and asks for its own panel's next weights.
#pragma once

#include "kernels.h"

namespace pocketlm::POCKETLM_ISA {

constexpr int kBytesAhead = 8192;  // within its own panel, of a single pass

struct Prefetch {
  const char* next;
  int64_t bytes;  // further in every step of a tile

  // For tiles that pass the panel `num_passes` times, `num_steps` steps each, of so many bytes of it.
  static Prefetch of(const void* panel, int64_t num_steps, int step_bytes, int num_passes) {
    return {static_cast<const char*>(panel) + (num_passes == 1 ? kBytesAhead : num_steps * step_bytes),
            (step_bytes + num_passes - 1) / num_passes};
  }

  // kBytes: what the tile reads itself in a step. It need not ask for as much unless it is alone.
  template <int kBytes, bool kAlone>
  void step() {
    for (int line = 0; line < (kAlone ? kBytes : kBytes / 2); line += 64)
      __builtin_prefetch(next + line, 0, 2);  // into the second-level cache
    next += bytes;
  }

  // All of a step's share, where steps are long.
  void step() {
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(next + line, 0, 2);
    next += bytes;
  }
};

}  // namespace pocketlm::POCKETLM_ISA
