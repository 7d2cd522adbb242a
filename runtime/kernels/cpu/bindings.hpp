// What the files that make up the extension share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <cstdint>

namespace coldpress {

namespace nb = nanobind;

template <class T, class... Shape>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu, Shape...>;
using AnyMatrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints = Array<std::int32_t, nb::ndim<1>>;
using Bytes = Array<std::int8_t, nb::ndim<2>>;

void bind_matrix(nb::module_& m);
void bind_probe(nb::module_& m);

}  // namespace coldpress
