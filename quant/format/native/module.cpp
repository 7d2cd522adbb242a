// What Python sees: arrays are checked, then searched without a copy or the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "blocks.hpp"
#include "instruction_sets.hpp"

namespace nb = nanobind;

namespace coldpress::blocks {

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

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<std::int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Numbers = std::vector<float>;

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

template <class Array>
void require_shape(const Array& array, std::size_t rows, std::size_t columns, const char* what) {
  require(array.shape(0) == rows && array.shape(1) == columns, what);
}

struct Free {
  void operator()(void* block) const { std::free(block); }
};

// Nearest integers are found by an addition that is exact below 2**22.
bool small(float a) { return std::fabs(a) <= 65536.0F; }

// A number type; see `_blocks.pyi`. The vectors outlive every search with it.
struct Type {
  int group, per_block;
  float lowest, highest;
  bool minimum;
  Numbers levels, nested, tries, nudges, ends;
  int rounds, nest_rounds;

  void check() const {
    require(group > 0 && group <= 256 && per_block > 0 && per_block <= kMaxGroups,
            "a block has up to 16 groups of up to 256 elements");
    require(lowest < highest && small(lowest) && small(highest),
            "levels must rise from lowest to highest, at most 65536 from 0");
    require(levels.empty() || (levels.size() == kCodebook && !minimum),
            "a codebook has 16 levels and no minimum");
    require(nested.empty() ? per_block == 1 : nested.size() == 2 && nested[0] < nested[1],
            "nested must be the range of nested scales");
    require(nested.empty() || (small(nested[0]) && small(nested[1])), "nested must be small");
    require(!tries.empty() && tries.size() % 2 == 0, "tries must be pairs");
    require(nested.empty() || !ends.empty(), "there must be ends to try");
  }

  Kind kind() const {
    Kind k;
    k.group = group;
    k.per_block = per_block;
    k.lowest = lowest;
    k.highest = highest;
    k.levels = levels.empty() ? nullptr : levels.data();
    k.minimum = minimum;
    k.nested = !nested.empty();
    if (k.nested) {
      k.nested_lowest = nested[0];
      k.nested_highest = nested[1];
    }
    return k;
  }

  Effort effort() const {
    Effort e;
    e.tries = tries.data();
    e.count = static_cast<int>(tries.size() / 2);
    e.rounds = rounds;
    e.nudges = nudges.data();
    e.nudge_count = static_cast<int>(nudges.size());
    e.ends = ends.data();
    e.end_count = static_cast<int>(ends.size());
    e.nest_rounds = nest_rounds;
    return e;
  }
};

void run(const Type& type, Matrix weight, std::optional<Vector> importance,
         std::optional<Matrix> known_scale, std::optional<Matrix> known_minimum, Out d,
         std::optional<Out> m, std::optional<Out> sub_scales, std::optional<Out> sub_minimums,
         std::optional<Codes> codes, const std::string& isa) {
  type.check();
  Search s;
  s.kind = type.kind();
  s.effort = type.effort();
  const std::size_t rows = weight.shape(0), columns = weight.shape(1);
  const std::size_t block = static_cast<std::size_t>(type.group) * type.per_block;
  require(columns > 0 && columns % block == 0, "rows must be whole blocks");
  s.blocks_per_row = columns / block;
  s.blocks = rows * s.blocks_per_row;
  const std::size_t groups = s.blocks_per_row * type.per_block;
  s.weight = weight.data();
  if (importance) {
    require(importance->shape(0) == columns, "importance must be [in]");
    s.importance = importance->data();
  }
  require(known_scale.has_value() == known_minimum.has_value(), "known scales have minimums");
  if (known_scale) {
    require_shape(*known_scale, rows, groups, "known_scale must be [out, groups]");
    require_shape(*known_minimum, rows, groups, "known_minimum must be [out, groups]");
    s.known_scale = known_scale->data();
    s.known_minimum = known_minimum->data();
  }
  require_shape(d, rows, s.blocks_per_row, "d must be [out, blocks]");
  s.d = d.data();
  require(m.has_value() == type.minimum, "m belongs to types with a minimum");
  require(sub_scales.has_value() == s.kind.nested, "sub_scales belong to nested types");
  require(sub_minimums.has_value() == (s.kind.nested && type.minimum),
          "sub_minimums belong to nested types with a minimum");
  if (m) {
    require_shape(*m, rows, s.blocks_per_row, "m must be [out, blocks]");
    s.m = m->data();
  }
  if (sub_scales) {
    require_shape(*sub_scales, rows, groups, "sub_scales must be [out, groups]");
    s.sub_scales = sub_scales->data();
  }
  if (sub_minimums) {
    require_shape(*sub_minimums, rows, groups, "sub_minimums must be [out, groups]");
    s.sub_minimums = sub_minimums->data();
  }
  if (codes) {
    require_shape(*codes, rows, columns, "codes must be [out, in]");
    s.codes = codes->data();
  }
  const KernelTable& table = kernels(isa);
  const std::size_t bytes = 2 * kWidest * block * sizeof(float);  // a multiple of 64
  const std::unique_ptr<void, Free> buffer(std::aligned_alloc(64, bytes));
  if (!buffer) throw std::bad_alloc();
  const nb::gil_scoped_release unlocked;
  table.search(s, static_cast<float*>(buffer.get()));
}

std::vector<std::string> instruction_sets() { return names_of(supported()); }

}  // namespace

}  // namespace coldpress::blocks

NB_MODULE(_blocks, module) {
  using namespace coldpress::blocks;
  using namespace nb::literals;
  module.def("instruction_sets", &instruction_sets);
  nb::class_<Type>(module, "Type")
      .def(
          "__init__",
          [](Type* self, int group, int per_block, float lowest, float highest, bool minimum,
             Numbers levels, Numbers nested, Numbers tries, int rounds, Numbers nudges,
             Numbers ends, int nest_rounds) {
            new (self) Type{group,  per_block, lowest, highest, minimum, std::move(levels),
                            std::move(nested), std::move(tries), std::move(nudges),
                            std::move(ends), rounds, nest_rounds};
            self->check();
          },
          nb::kw_only(), "group"_a, "per_block"_a, "lowest"_a, "highest"_a, "minimum"_a,
          "levels"_a, "nested"_a, "tries"_a, "rounds"_a, "nudges"_a, "ends"_a, "nest_rounds"_a);
  module.def("search", &run, "type"_a, "weight"_a, "importance"_a.none(), "known_scale"_a.none(),
             "known_minimum"_a.none(), "d"_a.noconvert(), "m"_a.noconvert().none(),
             "sub_scales"_a.noconvert().none(), "sub_minimums"_a.noconvert().none(),
             "codes"_a.noconvert().none(), "isa"_a = "auto");
}
