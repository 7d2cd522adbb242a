// Picks the kernels for the processor that we run on.
#include <cstring>

#include "kernels.hpp"

namespace coldpress {

namespace portable {
extern const KernelTable kTable;
}

#ifdef COLDPRESS_X86
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}

static bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

static bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const KernelTable* find_kernels(const char* name) {
  const bool any = std::strcmp(name, "auto") == 0;
#ifdef COLDPRESS_X86
  if ((any || std::strcmp(name, "avx512") == 0) && has_avx512()) return &avx512::kTable;
  if ((any || std::strcmp(name, "avx2") == 0) && has_avx2()) return &avx2::kTable;
#endif
  if (any || std::strcmp(name, "portable") == 0) return &portable::kTable;
  return nullptr;
}

}  // namespace coldpress
