// What Python sees: arrays are checked, then handed to the kernels without a copy or the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../format/native/instruction_sets.hpp"
#include "kernels.hpp"

namespace nb = nanobind;

namespace coldpress::rounding {

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
#endif

namespace {

template <int N>
using In = nb::ndarray<const float, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <int N>
using Out = nb::ndarray<float, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

const InstructionSets<KernelTable>& supported() {
  static const InstructionSets<KernelTable> sets = [] {
    InstructionSets<KernelTable> found;
#ifdef COLDPRESS_X86
    if (has_avx512()) found.push_back(&avx512::kTable);
    if (has_avx2()) found.push_back(&avx2::kTable);
#endif
    found.push_back(&portable::kTable);
    return found;
  }();
  return sets;
}

const KernelTable& kernels(const std::string& isa) { return kernels_named(supported(), isa); }

template <class A, class B>
bool alike(const A& a, const B& b) {
  return a.shape(0) == b.shape(0) && a.shape(1) == b.shape(1);
}

// Nearest integers are found by an addition that is exact below 2**22.
Levels levels_of(float lowest, float highest) {
  require(lowest < highest && std::fabs(lowest) <= 65536.0F && std::fabs(highest) <= 65536.0F,
          "levels must rise from lowest to highest, at most 65536 from 0");
  return {lowest, highest};
}

Chunk chunk_of(const In<2>& matrix, const In<2>& scale, const In<2>& zero, const Indices& group_of,
               const In<2>& mixing, Levels to) {
  const std::size_t columns = matrix.shape(0), rows = matrix.shape(1);
  require(columns <= static_cast<std::size_t>(kMaxColumns), "a chunk has at most 128 columns");
  require(alike(scale, zero) && scale.shape(1) == rows, "scale and zero must be [groups, rows]");
  require(group_of.shape(0) == columns, "group_of must be [columns]");
  require(mixing.shape(0) == columns && mixing.shape(1) == columns,
          "mixing must be [columns, columns]");
  for (std::size_t j = 0; j < columns; ++j) {
    const std::int32_t group = group_of.data()[j];
    require(group >= 0 && static_cast<std::size_t>(group) < scale.shape(0),
            "group_of must lie within scale");
  }
  return {rows, static_cast<int>(columns), {scale.data(), zero.data(), group_of.data()},
          mixing.data(), to};
}

void feedback(In<2> left, In<2> scale, In<2> zero, Indices group_of, In<2> mixing, float lowest,
              float highest, Out<2> levels, Out<2> errors, const std::string& isa) {
  const Chunk chunk = chunk_of(left, scale, zero, group_of, mixing, levels_of(lowest, highest));
  require(alike(left, levels) && alike(left, errors), "levels and errors must be as left");
  kernels(isa).feedback(chunk, left.data(), levels.data(), errors.data());
}

void sweep(In<2> gradient, In<2> scale, In<2> zero, Indices group_of, In<2> mixing, float lowest,
           float highest, Out<2> levels, Out<2> changes, const std::string& isa) {
  const Chunk chunk = chunk_of(gradient, scale, zero, group_of, mixing, levels_of(lowest, highest));
  require(alike(gradient, levels) && alike(gradient, changes),
          "levels and changes must be as gradient");
  kernels(isa).sweep(chunk, gradient.data(), levels.data(), changes.data());
}

struct Free {
  void operator()(void* block) const { std::free(block); }
};

void search(In<2> weight, In<1> importance, float lowest, float highest, bool symmetric,
            bool mirrored, float lowest_zero, int kept, float smallest, float largest,
            const std::vector<double>& shrinks, int refits, Out<2> scale, Out<2> zero,
            const std::string& isa) {
  const std::size_t rows = weight.shape(0), columns = weight.shape(1), groups = scale.shape(1);
  require(importance.shape(0) == columns, "importance must be [in]");
  require(scale.shape(0) == rows && alike(scale, zero), "scale and zero must be [out, groups]");
  require(groups > 0 && columns >= groups && columns % groups == 0, "groups must divide columns");
  require(kept > 0 && kept <= 23 && smallest > 0.0F, "no such type of scales");
  require(!shrinks.empty(), "there must be a range to start from");
  const std::size_t size = columns / groups;
  const std::size_t bytes = 2 * kWidest * size * sizeof(float);  // a multiple of 64
  const std::unique_ptr<void, Free> buffer(std::aligned_alloc(64, bytes));
  if (!buffer) throw std::bad_alloc();
  Search s;
  s.rows = rows;
  s.groups = static_cast<int>(groups);
  s.size = static_cast<int>(size);
  s.weight = weight.data();
  s.importance = importance.data();
  s.to = levels_of(lowest, highest);
  s.stored = {kept, smallest, largest};
  s.symmetric = symmetric;
  s.mirrored = mirrored && symmetric;
  s.lowest_zero = lowest_zero;
  s.shrinks = shrinks.data();
  s.steps = static_cast<int>(shrinks.size());
  s.refits = refits;
  kernels(isa).search(s, static_cast<float*>(buffer.get()), scale.data(), zero.data());
}

std::vector<std::string> instruction_sets() { return names_of(supported()); }

}  // namespace

}  // namespace coldpress::rounding

NB_MODULE(_rounding, m) {
  using namespace coldpress::rounding;
  using namespace nb::literals;
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;
  m.def("instruction_sets", &instruction_sets);
  m.def("feedback", &feedback, "left"_a, "scale"_a, "zero"_a, "group_of"_a, "mixing"_a, "lowest"_a,
        "highest"_a, "levels"_a.noconvert(), "errors"_a.noconvert(), "isa"_a = "auto", Unlocked());
  m.def("sweep", &sweep, "gradient"_a, "scale"_a, "zero"_a, "group_of"_a, "mixing"_a, "lowest"_a,
        "highest"_a, "levels"_a.noconvert(), "changes"_a.noconvert(), "isa"_a = "auto", Unlocked());
  m.def("search", &search, "weight"_a, "importance"_a, "lowest"_a, "highest"_a, "symmetric"_a,
        "mirrored"_a, "lowest_zero"_a, "kept"_a, "smallest"_a, "largest"_a, "shrinks"_a, "refits"_a,
        "scale"_a.noconvert(), "zero"_a.noconvert(), "isa"_a = "auto", Unlocked());
}
