// Which instruction sets this build holds and this processor runs.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace pocketlm {

std::vector<const Kernels*> available_kernels();      // best first
const Kernels* find_kernels(const std::string& isa);  // null if it is not among them

}  // namespace pocketlm
