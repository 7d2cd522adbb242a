// What Python sees of the sums: arrays are checked, then used in place and without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "moments.hpp"

namespace nb = nanobind;

namespace coldpress::moments {

namespace {

using Values = nb::ndarray<const std::uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Packed = nb::ndarray<const std::uint16_t, nb::ndim<5>, nb::c_contig, nb::device::cpu>;
using NewPacked = nb::ndarray<std::uint16_t, nb::ndim<5>, nb::c_contig, nb::device::cpu>;
using Sum = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

std::size_t parts(std::size_t whole, std::size_t size) { return (whole + size - 1) / size; }

bool supported() {
#ifdef COLDPRESS_BFLOAT16
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

template <class Array>
void require_packed(const Array& packed, std::size_t columns) {
  require(packed.shape(1) == parts(columns, kPanel) && packed.shape(2) == kPairs &&
              packed.shape(3) == kPanel && packed.shape(4) == 2,
          "packed rows must have the shape that packed_shape gives");
}

nb::tuple packed_shape(std::size_t tokens, std::size_t columns) {
  return nb::make_tuple(parts(tokens, 2 * kPairs), parts(columns, kPanel), kPairs, kPanel, 2);
}

void pack_rows(Values values, NewPacked packed) {
  require(supported(), "this processor cannot multiply bfloat16 numbers");
  require_packed(packed, values.shape(1));
  require(packed.shape(0) == parts(values.shape(0), 2 * kPairs), "packed has too few chunks");
#ifdef COLDPRESS_BFLOAT16
  pack(values.data(), values.shape(0), values.shape(1), packed.data());
#endif
}

void add_products(Packed left, Packed right, float weight, bool upper, std::size_t first,
                  std::size_t last, Sum sum) {
  require(supported(), "this processor cannot multiply bfloat16 numbers");
  require_packed(left, sum.shape(0));
  require_packed(right, sum.shape(1));
  require(left.shape(0) == right.shape(0), "left and right must have as many chunks");
  require(!upper || sum.shape(0) == sum.shape(1), "only a square has an upper half");
  require(first <= last && last <= left.shape(1), "there are no such panels");
#ifdef COLDPRESS_BFLOAT16
  Product product;
  product.left = left.data();
  product.right = right.data();
  product.chunks = left.shape(0);
  product.left_columns = sum.shape(0);
  product.right_columns = sum.shape(1);
  product.weight = weight;
  product.upper = upper;
  product.sum = sum.data();
  add(product, first, last);
#endif
}

}  // namespace

}  // namespace coldpress::moments

NB_MODULE(_moments, m) {
  using namespace coldpress::moments;
  using namespace nb::literals;
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;
  m.def("supported", &supported);
  m.def("packed_shape", &packed_shape, "tokens"_a, "columns"_a);
  m.def("pack_rows", &pack_rows, "values"_a, "packed"_a.noconvert(), Unlocked());
  m.def("add_products", &add_products, "left"_a.noconvert(), "right"_a.noconvert(), "weight"_a,
        "upper"_a, "first"_a, "last"_a, "sum"_a.noconvert(), Unlocked());
}
