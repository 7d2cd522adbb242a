// Picks the kernels for the processor that we run on.
#include <cstring>

#include "kernels.hpp"

#ifdef COLDPRESS_X86
#include <cpuid.h>
#endif

namespace coldpress {

namespace portable {
extern const KernelTable kTable;
}

#ifdef COLDPRESS_X86
namespace avx2 {
extern const KernelTable kTable;
}
#ifndef COLDPRESS_FEWER_SETS
namespace avx2_vnni {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
#endif
namespace avx512_vnni {
extern const KernelTable kTable;
}
namespace avx512_bf16 {
void attend(const AttentionView&, const QueryRow*, int, const std::int32_t*, int, int,
            const void* const*, float*, float*);
void narrow_bfloat16(const float*, int, std::uint16_t*);
}

// With VNNI and one instruction more, which attention alone uses.
static const KernelTable* with_bfloat16() {
  static const KernelTable table = [] {
    KernelTable made = avx512_vnni::kTable;
    made.name = "avx512_bf16";
    made.attend = avx512_bf16::attend;
    made.narrow_bfloat16 = avx512_bf16::narrow_bfloat16;
    return made;
  }();
  return &table;
}

static bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

// What GCC 12 has no names for yet: leaf 7, sub-leaf 1, a bit of EAX.
static bool has_newer(int bit) {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> bit & 1) != 0;
}

[[maybe_unused]] constexpr int kAvxVnni = 4;
constexpr int kAvx512Bf16 = 5;

static bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

static const KernelTable* find_x86(const char* name, bool any) {
  const bool wide = has_avx512();
  const bool narrow = has_avx2();
  const struct {
    const KernelTable* kernels;
    bool present;
  } sets[] = {
      {with_bfloat16(), wide && __builtin_cpu_supports("avx512vnni") && has_newer(kAvx512Bf16)},
      {&avx512_vnni::kTable, wide && __builtin_cpu_supports("avx512vnni")},
#ifndef COLDPRESS_FEWER_SETS
      {&avx512::kTable, wide},
      {&avx2_vnni::kTable, narrow && has_newer(kAvxVnni)},
#endif
      {&avx2::kTable, narrow},
  };
  for (const auto& set : sets)
    if (set.present && (any || std::strcmp(name, set.kernels->name) == 0)) return set.kernels;
  return nullptr;
}
#endif

const KernelTable* find_kernels(const char* name) {
  const bool any = std::strcmp(name, "auto") == 0;
#ifdef COLDPRESS_X86
  if (const KernelTable* kernels = find_x86(name, any)) return kernels;
#endif
  if (any || std::strcmp(name, "portable") == 0) return &portable::kTable;
  return nullptr;
}

}  // namespace coldpress
