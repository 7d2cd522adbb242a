// Which of a module's kernel tables this processor runs; for what is compiled once, not per set.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace coldpress {

#ifdef COLDPRESS_X86
inline bool has_avx2() { return __builtin_cpu_supports("avx2"); }

inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

// Best first; a table knows its name.
template <class Table>
using InstructionSets = std::vector<const Table*>;

// Throws std::invalid_argument where the processor lacks what is named; "auto" is the best.
template <class Table>
const Table& kernels_named(const InstructionSets<Table>& sets, const std::string& isa) {
  for (const Table* table : sets)
    if (isa == "auto" || isa == table->name) return *table;
  throw std::invalid_argument("this processor has no instruction set named " + isa);
}

template <class Table>
std::vector<std::string> names_of(const InstructionSets<Table>& sets) {
  std::vector<std::string> names;
  for (const Table* table : sets) names.emplace_back(table->name);
  return names;
}

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

}  // namespace coldpress
