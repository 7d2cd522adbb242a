// What Python sees. Arrays are copied while a model is loaded; a step borrows them for its call.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "matrix.hpp"
#include "plan.hpp"
#include "thread_pool.hpp"

namespace nb = nanobind;
using namespace coldpress;

namespace {

template <class T, class... Shape>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu, Shape...>;
using AnyMatrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints = Array<std::int32_t, nb::ndim<1>>;

Number number_named(const std::string& name) {
  if (name == "float32") return Number::float32;
  if (name == "float16") return Number::float16;
  if (name == "bfloat16") return Number::bfloat16;
  throw std::invalid_argument("unknown number type: " + name);
}

Numbers numbers_of(const AnyMatrix& array, const std::string& type) {
  const Number number = number_named(type);
  if (array.itemsize() != (number == Number::float32 ? 4U : 2U))
    throw std::invalid_argument("the array's items are not of type " + type);
  return {number, array.data()};
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

using TypedArray = std::tuple<AnyMatrix, std::string>;
using Bytes = Array<std::int8_t, nb::ndim<2>>;

// Sub-scales and sub-minimums of nested groups: there are several for each scale.
void nest(CodesSource& source, const TypedArray& scale, const std::optional<Bytes>& sub_scale,
          const std::optional<Bytes>& sub_minimum) {
  if (!sub_scale) return;
  const std::size_t outer = std::get<0>(scale).shape(1);
  if (outer == 0) throw std::invalid_argument("there are no scales");
  while ((outer << source.nesting) < sub_scale->shape(1)) ++source.nesting;
  if ((outer << source.nesting) != sub_scale->shape(1))
    throw std::invalid_argument("there are not 1, 2, 4, .. sub-scales for each scale");
  if (sub_minimum.has_value() != (source.minimum.data != nullptr))
    throw std::invalid_argument("nested minimums need sub-minimums, and the other way around");
  source.sub_scale = sub_scale->data();
  if (sub_minimum) source.sub_minimum = sub_minimum->data();
}

std::shared_ptr<Matrix> matrix_from_integers(
    const Array<std::int8_t, nb::ndim<2>>& codes, int num_bits, const TypedArray& scale,
    const std::optional<Array<std::int8_t, nb::ndim<2>>>& zero_point,
    const std::optional<TypedArray>& minimum, const Ints& group_starts,
    const std::optional<Ints>& column_order, ThreadPool& pool,
    const std::optional<Bytes>& sub_scale, const std::optional<Bytes>& sub_minimum) {
  CodesSource source;
  source.type = num_bits <= 4 ? Codes::int4 : Codes::int8;
  source.codes = codes.data();
  source.scale = numbers_of(std::get<0>(scale), std::get<1>(scale));
  if (zero_point) source.zero_point = zero_point->data();
  if (minimum) source.minimum = numbers_of(std::get<0>(*minimum), std::get<1>(*minimum));
  nest(source, scale, sub_scale, sub_minimum);
  source.group_starts = to_vector(group_starts);
  if (column_order) source.column_order = to_vector(*column_order);
  const nb::gil_scoped_release release;
  return std::make_shared<Matrix>(codes.shape(0), codes.shape(1), std::move(source), pool);
}

// `table` holds the 16 values of 4-bit codes; without one, codes are e4m3 floats.
std::shared_ptr<Matrix> matrix_from_codebook(
    const Array<std::int8_t, nb::ndim<2>>& codes,
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

std::shared_ptr<Plan> make_plan(std::shared_ptr<ThreadPool> pool, const std::string& isa) {
  const KernelTable* kernels = find_kernels(isa.c_str());
  if (kernels == nullptr)
    throw std::invalid_argument("this processor has no instruction set named " + isa);
  return std::make_shared<Plan>(std::move(pool), *kernels);
}

using Bias = std::optional<Array<float, nb::ndim<1>>>;
using ProjectionArgument = std::tuple<int, std::shared_ptr<Matrix>, Bias>;

void add_linear(Plan& plan, int x, const std::vector<ProjectionArgument>& arguments) {
  std::vector<Plan::Projection> projections;
  for (const auto& [out, matrix, bias] : arguments) {
    std::vector<float> values;
    if (bias) values.assign(bias->data(), bias->data() + bias->shape(0));
    projections.push_back({out, matrix, std::move(values)});
  }
  plan.add_linear(x, std::move(projections));
}

void add_round(Plan& plan, int out, int x, const std::string& numbers, int group,
               const std::string& scales, float fixed, float divisor) {
  Rounding rounding;
  rounding.group = group;
  rounding.fixed = fixed;
  rounding.divisor = divisor;
  if (numbers == "e4m3") rounding.levels = Levels::e4m3;
  else if (numbers == "e2m1") rounding.levels = Levels::e2m1;
  else if (numbers != "int8") throw std::invalid_argument("unknown numbers: " + numbers);
  if (scales == "e8m0") rounding.scales = Scales::e8m0;
  else if (scales == "e4m3") rounding.scales = Scales::e4m3;
  else if (scales != "float") throw std::invalid_argument("unknown scales: " + scales);
  plan.add_round(out, x, rounding);
}

void add_attend(Plan& plan, int out, int q, int k, int v, int cache, int heads, int kv_heads,
                int head_dim, float scale, int window, float softcap) {
  AttentionView view;
  view.heads = heads;
  view.kv_heads = kv_heads;
  view.head_dim = head_dim;
  view.scale = scale;
  view.window = window;
  view.softcap = softcap;
  plan.add_attend(out, q, k, v, cache, view);
}

void add_gated_act(Plan& plan, int out, int gate, int up, const std::string& activation) {
  if (activation != "silu" && activation != "gelu_tanh")
    throw std::invalid_argument("unknown activation: " + activation);
  plan.add_gated_act(out, gate, up,
                     activation == "silu" ? Activation::silu : Activation::gelu_tanh);
}

// The view is of the plan's own memory, which the next step overwrites.
nb::ndarray<nb::numpy, float> step(nb::handle self, const Ints& token_ids, const Ints& positions,
                                   const Ints& query_starts,
                                   const Array<std::int32_t, nb::ndim<2>>& page_table,
                                   const Ints& logit_rows, int result) {
  Plan& plan = nb::cast<Plan&>(self);
  const std::size_t sequences = page_table.shape(0);
  if (positions.shape(0) != token_ids.shape(0) || query_starts.shape(0) != sequences + 1)
    throw std::invalid_argument("malformed step: the arrays' lengths differ");
  const Batch batch{token_ids.data(),
                    positions.data(),
                    static_cast<int>(token_ids.shape(0)),
                    query_starts.data(),
                    page_table.data(),
                    static_cast<int>(sequences),
                    static_cast<int>(page_table.shape(1)),
                    logit_rows.data(),
                    static_cast<int>(logit_rows.shape(0))};
  {
    const nb::gil_scoped_release release;
    plan.step(batch);
  }
  return {const_cast<float*>(plan.rows(result)),
          {static_cast<std::size_t>(batch.selected), static_cast<std::size_t>(plan.width(result))},
          self,
          {static_cast<std::int64_t>(plan.stride(result)), 1}};
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "CPU kernels, and the plan that replays a whole step of them.";

  nb::class_<ThreadPool>(m, "ThreadPool")
      .def(nb::init<int>(), nb::arg("threads"))
      .def_prop_ro("size", &ThreadPool::size);

  nb::class_<Matrix>(m, "Matrix")
      .def_static("from_numbers", &matrix_from_numbers, nb::arg("array"), nb::arg("type"),
                  nb::arg("pool"))
      .def_static("from_integers", &matrix_from_integers, nb::arg("codes"), nb::arg("num_bits"),
                  nb::arg("scale"), nb::arg("zero_point").none(), nb::arg("minimum").none(),
                  nb::arg("group_starts"), nb::arg("column_order").none(), nb::arg("pool"),
                  nb::arg("sub_scale").none() = nb::none(),
                  nb::arg("sub_minimum").none() = nb::none())
      .def_static("from_codebook", &matrix_from_codebook, nb::arg("codes"),
                  nb::arg("table").none(), nb::arg("scale"), nb::arg("divisor"),
                  nb::arg("group_starts"), nb::arg("column_order").none(), nb::arg("pool"),
                  nb::arg("sub_scale").none() = nb::none())
      .def_prop_ro("shape", [](const Matrix& m) { return std::make_tuple(m.rows(), m.columns()); })
      .def_prop_ro("nbytes", &Matrix::bytes)
      .def_prop_ro("reordered", [](const Matrix& m) { return !m.column_order().empty(); })
      .def("dequantize", &dequantize);

  nb::class_<Plan>(m, "Plan")
      .def(nb::new_(&make_plan), nb::arg("pool"), nb::arg("isa") = "auto")
      .def("add_buffer", &Plan::add_buffer, nb::arg("width"), nb::arg("selected"))
      .def("add_rope_table", &Plan::add_rope_table, nb::arg("frequencies"),
           nb::arg("attention_factor"))
      .def("add_cache", &Plan::add_cache, nb::arg("kv_heads"), nb::arg("head_dim"))
      .def("add_embed", &Plan::add_embed, nb::arg("out"), nb::arg("table"))
      .def("add_rms_norm", &Plan::add_rms_norm, nb::arg("out"), nb::arg("x"), nb::arg("weight"),
           nb::arg("eps"))
      .def("add_gather", &Plan::add_gather, nb::arg("out"), nb::arg("x"), nb::arg("matrix"))
      .def("add_round", &add_round, nb::arg("out"), nb::arg("x"), nb::arg("numbers"),
           nb::arg("group"), nb::arg("scales"), nb::arg("fixed"), nb::arg("divisor"))
      .def("add_linear", &add_linear, nb::arg("x"), nb::arg("projections"))
      .def("add_rope", &Plan::add_rope, nb::arg("out"), nb::arg("x"), nb::arg("heads"),
           nb::arg("head_dim"), nb::arg("table"))
      .def("add_attend", &add_attend, nb::arg("out"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
           nb::arg("cache"), nb::arg("heads"), nb::arg("kv_heads"), nb::arg("head_dim"),
           nb::arg("scale"), nb::arg("window"), nb::arg("softcap"))
      .def("add_gated_act", &add_gated_act, nb::arg("out"), nb::arg("gate"), nb::arg("up"),
           nb::arg("activation"))
      .def("add_add", &Plan::add_add, nb::arg("out"), nb::arg("a"), nb::arg("b"))
      .def("add_select_rows", &Plan::add_select_rows, nb::arg("out"), nb::arg("x"))
      .def("add_softcap", &Plan::add_softcap, nb::arg("x"), nb::arg("cap"))
      .def("allocate", &Plan::allocate, nb::arg("num_pages"), nb::arg("page_size"),
           nb::arg("max_tokens"), nb::arg("vocab_size"))
      .def_prop_ro("cache_bytes", &Plan::cache_bytes)
      .def("step", &step, nb::arg("token_ids"), nb::arg("positions"), nb::arg("query_starts"),
           nb::arg("page_table"), nb::arg("logit_rows"), nb::arg("result"));

  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const char* name : {"avx512", "avx2", "portable"})
      if (find_kernels(name) != nullptr) names.emplace_back(name);
    return names;
  });
}
