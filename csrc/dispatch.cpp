#include "dispatch.h"

namespace pocketlm {

#if defined(__x86_64__)
namespace avx512_vnni {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
#endif
namespace portable {
extern const Kernels kKernels;
}

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> kernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512vnni");
  if (has_avx2 && has_avx512) kernels.push_back(&avx512_vnni::kKernels);
  if (has_avx2) kernels.push_back(&avx2::kKernels);
#endif
  kernels.push_back(&portable::kKernels);
  return kernels;
}

const Kernels* find_kernels(const std::string& isa) {
  for (const Kernels* kernels : available_kernels())
    if (isa == kernels->isa) return kernels;
  return nullptr;
}

}  // namespace pocketlm
