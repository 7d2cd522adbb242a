// Weights as Python hands them over; every size is checked before it is relied on.
#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <variant>

#include "bindings.hpp"
#include "matrix.hpp"
#include "thread_pool.hpp"

namespace coldpress {

namespace {

Number number_named(const std::string& name) {
  if (name == "float32") return Number::float32;
  if (name == "float16") return Number::float16;
  if (name == "bfloat16") return Number::bfloat16;
  throw std::invalid_argument("unknown number type: " + name);
}

template <class A>
Numbers numbers_of(const A& array, const std::string& type) {
  const Number number = number_named(type);
  if (array.itemsize() != (number == Number::float32 ? 4U : 2U))
    throw std::invalid_argument("the array's items are not of type " + type);
  return {number, array.data(), array.stride(0), array.stride(1)};
}

std::vector<std::int32_t> to_vector(const Ints& array) {
  return {array.data(), array.data() + array.shape(0)};
}

std::shared_ptr<Matrix> matrix_from_numbers(const AnyMatrix& array, const std::string& type,
                                            ThreadPool& pool) {
  const Numbers numbers = numbers_of(array, type);
  const nb::gil_scoped_release release;
  return std::make_shared<Matrix>(array.shape(0), array.shape(1), numbers, pool);
}

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// Scales and minimums may lie among other things, a row and a column apart by any strides.
using TypedArray = std::tuple<nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>, std::string>;

// Sub-scales and sub-minimums of nested groups: there are several for each scale.
void nest(CodesSource& source, const TypedArray& scale, const std::optional<Bytes>& sub_scale,
          const std::optional<Bytes>& sub_minimum) {
  if (!sub_scale) return;
  const std::size_t outer = std::get<0>(scale).shape(1);
  require(outer > 0, "there are no scales");
  while ((outer << source.nesting) < sub_scale->shape(1)) ++source.nesting;
  require((outer << source.nesting) == sub_scale->shape(1),
          "there are not 1, 2, 4, .. sub-scales for each scale");
  require(sub_minimum.has_value() == (source.minimum.data != nullptr),
          "nested minimums need sub-minimums, and the other way around");
  source.sub_scale = sub_scale->data();
  if (sub_minimum) source.sub_minimum = sub_minimum->data();
}

// [rows, groups] or, of nested groups, [rows, groups / 2 ** nesting].
template <class A>
void require_groups(const std::optional<A>& array, std::size_t rows, std::size_t groups) {
  require(!array || (array->shape(0) == rows && array->shape(1) == groups),
          "scales, minimums and zero points have a row for each of the codes, a column for each group");
}

// Every array that `source` points into is as large as the codes and groups say.
void check_layout(std::size_t rows, std::size_t columns, const CodesSource& source,
                  const TypedArray& scale, const std::optional<TypedArray>& minimum) {
  const std::vector<std::int32_t>& starts = source.group_starts;
  require(!starts.empty() && starts.front() == 0 && std::is_sorted(starts.begin(), starts.end()) &&
              static_cast<std::size_t>(starts.back()) == columns,
          "groups must cover the columns in order");
  const std::vector<std::int32_t>& order = source.column_order;
  const auto outside = [&](std::int32_t k) {
    return k < 0 || static_cast<std::size_t>(k) >= columns;
  };
  require(order.empty() || order.size() == columns, "the order must name every column");
  require(std::none_of(order.begin(), order.end(), outside), "the order names no column");
  const std::size_t outer = (starts.size() - 1) >> source.nesting;
  require_groups(std::optional(std::get<0>(scale)), rows, outer);
  if (minimum) require_groups(std::optional(std::get<0>(*minimum)), rows, outer);
}

// What integers have beside their codes.
struct GroupArrays {
  const TypedArray& scale;
  const std::optional<Bytes>& zero_point;
  const std::optional<TypedArray>& minimum;
  const std::optional<Bytes>& sub_scale;
  const std::optional<Bytes>& sub_minimum;
};

std::shared_ptr<Matrix> pack_integers(std::size_t rows, std::size_t columns, CodesSource source,
                                      const GroupArrays& arrays, ThreadPool& pool) {
  source.scale = numbers_of(std::get<0>(arrays.scale), std::get<1>(arrays.scale));
  if (arrays.zero_point) source.zero_point = arrays.zero_point->data();
  if (arrays.minimum)
    source.minimum = numbers_of(std::get<0>(*arrays.minimum), std::get<1>(*arrays.minimum));
  nest(source, arrays.scale, arrays.sub_scale, arrays.sub_minimum);
  check_layout(rows, columns, source, arrays.scale, arrays.minimum);
  for (const auto& each : {arrays.zero_point, arrays.sub_scale, arrays.sub_minimum})
    require_groups(each, rows, source.group_starts.size() - 1);
  const nb::gil_scoped_release release;
  return std::make_shared<Matrix>(rows, columns, std::move(source), pool);
}

std::shared_ptr<Matrix> matrix_from_integers(
    const Bytes& codes, int num_bits, const TypedArray& scale,
    const std::optional<Bytes>& zero_point,
    const std::optional<TypedArray>& minimum, const Ints& group_starts,
    const std::optional<Ints>& column_order, ThreadPool& pool,
    const std::optional<Bytes>& sub_scale, const std::optional<Bytes>& sub_minimum, bool quads) {
  CodesSource source;
  source.quads = quads;
  source.type = num_bits <= 4 ? Codes::int4 : Codes::int8;
  source.codes = codes.data();
  source.group_starts = to_vector(group_starts);
  if (column_order) source.column_order = to_vector(*column_order);
  return pack_integers(codes.shape(0), codes.shape(1), std::move(source),
                       {scale, zero_point, minimum, sub_scale, sub_minimum}, pool);
}

// start, bytes, lane, bits, shift of a plane.
using PlaneTuple = std::tuple<int, int, int, int, int>;

// Bytes [rows, bytes of a row]; or, in a file, its path, where they begin and those two sizes.
using Rows = Array<std::uint8_t, nb::ndim<2>>;
using FileTuple = std::tuple<std::string, std::uint64_t, std::size_t, std::size_t>;
using RowsOrFile = std::variant<Rows, FileTuple>;

std::shared_ptr<const FileRows> open_rows(const FileTuple& file) {
  const auto& [path, begin, rows, row_bytes] = file;
  return std::make_shared<FileRows>(path, begin, row_bytes);
}

// Puts where the codes are into `source`; how many rows there are.
std::size_t locate(const RowsOrFile& data, bool turned, CodesSource& source) {
  if (const auto* file = std::get_if<FileTuple>(&data)) {
    require(!turned, "turned rows are read as a whole");
    source.file = open_rows(*file);
    source.packed.row_bytes = source.file->row_bytes();
    return std::get<2>(*file);
  }
  const Rows& rows = std::get<Rows>(data);
  source.packed.data = rows.data();
  source.packed.row_bytes = turned ? 4 * rows.shape(0) : rows.shape(1);
  if (!turned) return rows.shape(0);
  require(rows.shape(1) > 0 && rows.shape(1) % 4 == 0, "turned rows are of words");
  source.packed.turned = rows.shape(1) / 4;
  return source.packed.turned;
}

std::shared_ptr<Matrix> matrix_from_file(const FileTuple& file, std::size_t columns,
                                         const std::string& type, ThreadPool& pool) {
  const Number number = number_named(type);
  const std::shared_ptr<const FileRows> rows = open_rows(file);
  require(rows->row_bytes() == columns * (number == Number::float32 ? 4 : 2),
          "the rows are not of so many numbers");
  const nb::gil_scoped_release release;
  return std::make_shared<Matrix>(std::get<2>(file), columns, number, *rows, pool);
}

std::shared_ptr<Matrix> matrix_from_packed(
    const RowsOrFile& data, std::size_t columns, int block, int block_bytes,
    int offset, const std::vector<PlaneTuple>& planes, int num_bits, const TypedArray& scale,
    const std::optional<Bytes>& zero_point, const std::optional<TypedArray>& minimum,
    const Ints& group_starts, ThreadPool& pool, const std::optional<Bytes>& sub_scale,
    const std::optional<Bytes>& sub_minimum, bool quads, bool turned) {
  CodesSource source;
  source.quads = quads;
  source.type = num_bits <= 4 ? Codes::int4 : Codes::int8;
  const std::size_t rows = locate(data, turned, source);
  source.packed.block = block;
  source.packed.block_bytes = block_bytes;
  source.packed.offset = offset;
  for (const auto& [start, bytes, lane, bits, shift] : planes)
    source.packed.planes.push_back({start, bytes, lane, bits, shift});
  require(source.packed.fits(columns), "the planes do not fit the blocks, or the blocks the rows");
  source.group_starts = to_vector(group_starts);
  return pack_integers(rows, columns, std::move(source),
                       {scale, zero_point, minimum, sub_scale, sub_minimum}, pool);
}

// `table` holds the 16 values of 4-bit codes; without one, codes are e4m3 floats.
std::shared_ptr<Matrix> matrix_from_codebook(
    const Bytes& codes,
    const std::optional<Array<float, nb::shape<16>>>& table, const TypedArray& scale,
    float divisor, const Ints& group_starts, const std::optional<Ints>& column_order,
    ThreadPool& pool, const std::optional<Bytes>& sub_scale) {
  CodesSource source;
  source.type = table ? Codes::table : Codes::e4m3;
  source.codes = codes.data();
  if (table) source.table.assign(table->data(), table->data() + 16);
  source.scale = numbers_of(std::get<0>(scale), std::get<1>(scale));
  source.divisor = divisor;
  nest(source, scale, sub_scale, std::nullopt);
  source.group_starts = to_vector(group_starts);
  if (column_order) source.column_order = to_vector(*column_order);
  check_layout(codes.shape(0), codes.shape(1), source, scale, std::nullopt);
  require_groups(sub_scale, codes.shape(0), group_starts.shape(0) - 1);
  const nb::gil_scoped_release release;
  return std::make_shared<Matrix>(codes.shape(0), codes.shape(1), std::move(source), pool);
}

nb::ndarray<nb::numpy, float> owned_array(std::vector<float> values, std::size_t rows,
                                          std::size_t columns) {
  auto* kept = new std::vector<float>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
  return {kept->data(), {rows, columns}, owner};
}

nb::ndarray<nb::numpy, float> dequantize(const Matrix& matrix) {
  const std::size_t columns = matrix.columns();
  std::vector<float> values(matrix.rows() * columns);
  for (int row = 0; row < matrix.rows(); ++row)
    matrix.dequantize_row(row, values.data() + row * columns);
  return owned_array(std::move(values), matrix.rows(), columns);
}

}  // namespace

void bind_matrix(nb::module_& m) {
  nb::class_<Matrix>(m, "Matrix")
      .def_static("from_numbers", &matrix_from_numbers, nb::arg("array"), nb::arg("type"),
                  nb::arg("pool"))
      .def_static("from_file", &matrix_from_file, nb::arg("file"), nb::arg("columns"),
                  nb::arg("type"), nb::arg("pool"))
      .def_static("from_integers", &matrix_from_integers, nb::arg("codes"), nb::arg("num_bits"),
                  nb::arg("scale"), nb::arg("zero_point").none(), nb::arg("minimum").none(),
                  nb::arg("group_starts"), nb::arg("column_order").none(), nb::arg("pool"),
                  nb::arg("sub_scale").none() = nb::none(),
                  nb::arg("sub_minimum").none() = nb::none(), nb::arg("quads") = false)
      .def_static("from_packed", &matrix_from_packed, nb::arg("data"), nb::arg("columns"),
                  nb::arg("block"), nb::arg("block_bytes"), nb::arg("offset"), nb::arg("planes"),
                  nb::arg("num_bits"), nb::arg("scale"), nb::arg("zero_point").none(),
                  nb::arg("minimum").none(), nb::arg("group_starts"), nb::arg("pool"),
                  nb::arg("sub_scale").none() = nb::none(),
                  nb::arg("sub_minimum").none() = nb::none(), nb::arg("quads") = false,
                  nb::arg("turned") = false)
      .def_static("from_codebook", &matrix_from_codebook, nb::arg("codes"),
                  nb::arg("table").none(), nb::arg("scale"), nb::arg("divisor"),
                  nb::arg("group_starts"), nb::arg("column_order").none(), nb::arg("pool"),
                  nb::arg("sub_scale").none() = nb::none())
      .def_prop_ro("shape", [](const Matrix& m) { return std::make_tuple(m.rows(), m.columns()); })
      .def_prop_ro("nbytes", &Matrix::bytes)
      .def_prop_ro("reordered", [](const Matrix& m) { return !m.column_order().empty(); })
      .def_prop_ro("in_quads", &Matrix::in_quads)
      .def("dequantize", &dequantize);
}

}  // namespace coldpress
