#include "dispatch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace pocketlm {

#if defined(__x86_64__)
namespace amx {
extern const Kernels kKernels;
}
namespace avx512_bf16 {
extern const Kernels kKernels;
}
namespace avx512_vnni {
extern const Kernels kKernels;
}
namespace avx_vnni {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
#elif defined(__aarch64__)
namespace neon_dotprod {
extern const Kernels kKernels;
}
namespace neon {
extern const Kernels kKernels;
}
#endif
namespace portable {
extern const Kernels kKernels;
}

namespace {

#if defined(__x86_64__)
bool has_avx_vnni() {  // __builtin_cpu_supports of some compilers does not know the name
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1 << 4);
}

// The registers are so large that a process has to ask Linux for them. It gets them for good, in all threads.
bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25;
  constexpr int kAskForComponent = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kTiles) && (edx & kInt8) &&
         syscall(SYS_arch_prctl, kAskForComponent, kTileData) == 0;
#else
  return false;
#endif
}
#elif defined(__aarch64__)
bool has_dot_product() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
  return true;  // every Apple processor that runs macOS has it
#else
  return false;
#endif
}
#endif

}  // namespace

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> kernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512vnni");
  const bool has_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
  if (has_avx2 && has_avx512 && has_amx()) kernels.push_back(&amx::kKernels);
  // AMD's processors multiply bfloat16 twice as fast as floats, Intel's half as fast.
  const bool is_bf16_fast = __builtin_cpu_is("amd");
  if (has_avx2 && has_bf16 && is_bf16_fast) kernels.push_back(&avx512_bf16::kKernels);
  if (has_avx2 && has_avx512) kernels.push_back(&avx512_vnni::kKernels);
  if (has_avx2 && has_bf16 && !is_bf16_fast) kernels.push_back(&avx512_bf16::kKernels);
  if (has_avx2 && has_avx_vnni()) kernels.push_back(&avx_vnni::kKernels);
  if (has_avx2) kernels.push_back(&avx2::kKernels);
#elif defined(__aarch64__)
  if (has_dot_product()) kernels.push_back(&neon_dotprod::kKernels);
  kernels.push_back(&neon::kKernels);
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
