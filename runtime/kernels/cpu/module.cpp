// What Python sees. Arrays are copied while a model is loaded; a step borrows them for its call.
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bindings.hpp"
#include "plan.hpp"
#include "thread_pool.hpp"

using namespace coldpress;

namespace {

std::shared_ptr<Plan> make_plan(std::shared_ptr<ThreadPool> pool, const std::string& isa) {
  const KernelTable* kernels = find_kernels(isa.c_str());
  if (kernels == nullptr)
    throw std::invalid_argument("this processor has no instruction set named " + isa);
  return std::make_shared<Plan>(std::move(pool), *kernels);
}

using Bias = std::optional<Array<float, nb::ndim<1>>>;
using ProjectionArgument = std::tuple<int, std::shared_ptr<Matrix>, Bias>;

std::vector<Plan::Projection> projections_of(const std::vector<ProjectionArgument>& arguments) {
  std::vector<Plan::Projection> projections;
  for (const auto& [out, matrix, bias] : arguments) {
    std::vector<float> values;
    if (bias) values.assign(bias->data(), bias->data() + bias->shape(0));
    projections.push_back({out, matrix, std::move(values)});
  }
  return projections;
}

void add_linear(Plan& plan, int x, const std::vector<ProjectionArgument>& arguments) {
  plan.add_linear(x, projections_of(arguments));
}

void add_linear_int8(Plan& plan, int x, const std::vector<ProjectionArgument>& arguments) {
  plan.add_linear_int8(x, projections_of(arguments));
}

void add_quantize(Plan& plan, int out, int x, int group, float fixed, float span) {
  Rounding rounding;
  rounding.group = group;
  rounding.fixed = fixed;
  rounding.span = span;
  plan.add_quantize(out, x, rounding);
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

int add_cache(Plan& plan, int kv_heads, int head_dim, const std::string& number) {
  if (head_dim > kLargestHead) throw std::invalid_argument("heads are larger than 1024 elements");
  if (number == "float32") return plan.add_cache(kv_heads, head_dim, CacheNumber::float32);
  if (number == "float16") return plan.add_cache(kv_heads, head_dim, CacheNumber::float16);
  if (number == "bfloat16") return plan.add_cache(kv_heads, head_dim, CacheNumber::bfloat16);
  if (number == "int8") return plan.add_cache(kv_heads, head_dim, CacheNumber::int8);
  throw std::invalid_argument("caches hold float32, float16, bfloat16 or int8, not " + number);
}

void add_attend(Plan& plan, int out, int q, int k, int v, int cache, int heads, int kv_heads,
                int head_dim, float scale, int window, float softcap, bool rounded) {
  AttentionView view;
  view.heads = heads;
  view.kv_heads = kv_heads;
  view.head_dim = head_dim;
  view.scale = scale;
  view.window = window;
  view.softcap = softcap;
  view.rounded = rounded;
  plan.add_attend(out, q, k, v, cache, view);
}

void add_gated_act(Plan& plan, int out, int gate, int up, const std::string& activation) {
  if (activation != "silu" && activation != "gelu_tanh")
    throw std::invalid_argument("unknown activation: " + activation);
  plan.add_gated_act(out, gate, up,
                     activation == "silu" ? Activation::silu : Activation::gelu_tanh);
}

// temperature, top_k, top_p, min_p, uniform of a row.
using DrawTuple = std::tuple<float, int, float, float, double>;
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;

std::vector<std::int32_t> draw(Plan& plan, const Logits& logits, const std::vector<int>& rows,
                               const std::vector<DrawTuple>& options) {
  if (logits.shape(1) == 0 || logits.stride(1) != 1 || rows.size() != options.size())
    throw std::invalid_argument("rows of logits have no gaps, and options each");
  std::vector<Plan::RowDraw> draws;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] < 0 || static_cast<std::size_t>(rows[i]) >= logits.shape(0))
      throw std::invalid_argument("there is no such row of logits");
    const auto [temperature, top_k, top_p, min_p, uniform] = options[i];
    draws.push_back({logits.data() + rows[i] * logits.stride(0),
                     {temperature, top_k, top_p, min_p, uniform}});
  }
  const nb::gil_scoped_release release;
  return plan.draw(draws, static_cast<int>(logits.shape(1)));
}

// The view is of the plan's own memory, which the next step overwrites.
nb::ndarray<nb::numpy, float> step(nb::handle self, const Ints& token_ids, const Ints& positions,
                                   const Ints& query_starts,
                                   const Array<std::int32_t, nb::ndim<2>>& page_table,
                                   const Ints& logit_rows, int result,
                                   std::optional<std::size_t> ops) {
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
    plan.step(batch, ops.value_or(plan.ops()));
  }
  return {const_cast<float*>(plan.rows(result)),
          {static_cast<std::size_t>(batch.selected), static_cast<std::size_t>(plan.width(result))},
          self,
          {static_cast<std::int64_t>(plan.stride(result)), 1}};
}

// A view as well.
nb::ndarray<nb::numpy, const std::int32_t> best(nb::handle self) {
  const std::vector<std::int32_t>& found = nb::cast<Plan&>(self).best();
  return {found.data(), {found.size()}, self};
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "CPU kernels, and the plan that replays a whole step of them.";

  nb::class_<ThreadPool>(m, "ThreadPool")
      .def(nb::init<int>(), nb::arg("threads"))
      .def_prop_ro("size", &ThreadPool::size);

  bind_matrix(m);
  bind_probe(m);

  nb::class_<Plan>(m, "Plan")
      .def(nb::new_(&make_plan), nb::arg("pool"), nb::arg("isa") = "auto")
      .def("add_buffer", &Plan::add_buffer, nb::arg("width"), nb::arg("selected"),
           nb::arg("routed") = false)
      .def("add_rope_table", &Plan::add_rope_table, nb::arg("frequencies"),
           nb::arg("attention_factor"))
      .def("add_cache", &add_cache, nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("number"))
      .def("add_embed", &Plan::add_embed, nb::arg("out"), nb::arg("table"),
           nb::arg("scale") = 1.0F)
      .def("add_slice", &Plan::add_slice, nb::arg("out"), nb::arg("x"), nb::arg("start"))
      .def("add_rms_norm", &Plan::add_rms_norm, nb::arg("out"), nb::arg("x"), nb::arg("weight"),
           nb::arg("eps"))
      .def("add_gather", &Plan::add_gather, nb::arg("out"), nb::arg("x"), nb::arg("matrix"))
      .def("add_round", &add_round, nb::arg("out"), nb::arg("x"), nb::arg("numbers"),
           nb::arg("group"), nb::arg("scales"), nb::arg("fixed"), nb::arg("divisor"))
      .def("add_linear", &add_linear, nb::arg("x"), nb::arg("projections"))
      .def("add_rounded_buffer", &Plan::add_rounded_buffer, nb::arg("width"), nb::arg("selected"),
           nb::arg("routed") = false)
      .def("add_quantize", &add_quantize, nb::arg("out"), nb::arg("x"), nb::arg("group"),
           nb::arg("fixed"), nb::arg("span"))
      .def("add_linear_int8", &add_linear_int8, nb::arg("x"), nb::arg("projections"))
      .def("add_rope", &Plan::add_rope, nb::arg("out"), nb::arg("x"), nb::arg("heads"),
           nb::arg("head_dim"), nb::arg("table"))
      .def("add_attend", &add_attend, nb::arg("out"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
           nb::arg("cache"), nb::arg("heads"), nb::arg("kv_heads"), nb::arg("head_dim"),
           nb::arg("scale"), nb::arg("window"), nb::arg("softcap"), nb::arg("rounded") = false)
      .def("add_gated_act", &add_gated_act, nb::arg("out"), nb::arg("gate"), nb::arg("up"),
           nb::arg("activation"))
      .def("add_add", &Plan::add_add, nb::arg("out"), nb::arg("a"), nb::arg("b"))
      .def("add_route", &Plan::add_route, nb::arg("out"), nb::arg("logits"), nb::arg("chosen"),
           nb::arg("normalized"))
      .def("add_send", &Plan::add_send, nb::arg("out"), nb::arg("x"), nb::arg("expert"))
      .def("add_collect", &Plan::add_collect, nb::arg("out"), nb::arg("x"))
      .def("add_select_rows", &Plan::add_select_rows, nb::arg("out"), nb::arg("x"))
      .def("add_softcap", &Plan::add_softcap, nb::arg("x"), nb::arg("cap"))
      .def("add_argmax", &Plan::add_argmax, nb::arg("x"))
      .def("draw", &draw, nb::arg("logits"), nb::arg("rows"), nb::arg("options"))
      .def("allocate", &Plan::allocate, nb::arg("num_pages"), nb::arg("page_size"),
           nb::arg("max_tokens"), nb::arg("vocab_size"))
      .def("best", &best)
      .def_prop_ro("cache_bytes", &Plan::cache_bytes)
      .def("give_back", &Plan::give_back, nb::arg("pages"))
      .def("profile", &Plan::profile, nb::arg("on"))
      .def("timings", [](const Plan& plan) {
        std::vector<std::tuple<std::string, double, double>> found;
        for (const Plan::Timing& each : plan.timings())
          found.emplace_back(each.name, each.prefill_seconds, each.decode_seconds);
        return found;
      })
      .def("step", &step, nb::arg("token_ids"), nb::arg("positions"), nb::arg("query_starts"),
           nb::arg("page_table"), nb::arg("logit_rows"), nb::arg("result"),
           nb::arg("ops") = nb::none())
      .def_prop_ro("ops", &Plan::ops);

  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const char* name : {"avx512_bf16", "avx512_vnni", "avx512", "avx2_vnni", "avx2", "portable"})
      if (find_kernels(name) != nullptr) names.emplace_back(name);
    return names;
  });
}
