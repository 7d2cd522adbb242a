// Attention of a few rows over a stretch of their pages (softmax of parts that are joined later:
// Milakov & Gimelshein 2018).
//
// A row's scores of the whole stretch come first, then their softmax, then the sum of its values; all
// sums run over elements and positions in order, so a row's result depends on its own position and
// nothing else of the step. Rows share the loads of keys and values, and none reads a value that it
// does not see: it may be another request's, and not a number.
#include "attention_bytes.hpp"

namespace coldpress::COLDPRESS_ISA {

// Values of places join what is in `mixed`; weights: [rows][stride].
template <class Form, int rows, int vecs>
inline void mix_tile(const Stretch<Form>& stretch, Span places, int d,
                     const typename Form::Factor* weights, std::size_t stride, float* mixed) {
  using Stored = typename Form::Stored;
  const AttentionView& view = stretch.view;
  const std::size_t part = part_size(view.value_stride);
  Vec sums[rows][vecs];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) sums[r][v] = load(mixed + r * part + d + v * kLanes);
  const auto join = [&](const typename Form::Loaded* value, const typename Form::Factor* w) {
    for (int r = 0; r < rows; ++r) {
      const typename Form::Splat weight = Form::splat_group(w + r * stride);
      for (int v = 0; v < vecs; ++v) sums[r][v] = Form::multiply(sums[r][v], value[v], weight);
    }
  };
  for (int page = places.from / view.key_stride; page * view.key_stride < places.to; ++page) {
    const int base = page * view.key_stride;
    int j = larger(places.from - base, 0);
    const int end = smaller(places.to - base, view.page_size);
    const Stored* values = stretch.values[page] + d * Form::kGroup;
    const Stored* next = stretch.values[page + stretch.pages_ahead] + d * Form::kGroup;
    const typename Form::Factor* w = weights + base;
    typename Form::Loaded value[vecs];
    // Of the group that begins at `at`, what is in [from, to).
    const auto join_some = [&](int at, int from, int to) {
      for (int v = 0; v < vecs; ++v)
        value[v] = Form::only_some(from, to, Form::load_group(values + at * view.value_stride +
                                                              v * kLanes * Form::kGroup));
      join(value, w + at);
    };
    if (const int from = j % Form::kGroup; from != 0 && j < end) {
      join_some(j - from, from, smaller(end - j + from, Form::kGroup));
      j += Form::kGroup - from;
    }
    for (; j + Form::kGroup <= end; j += Form::kGroup) {
      const std::size_t at = static_cast<std::size_t>(j) * view.value_stride;
      ask_for(next + at, sizeof(Stored) * Form::kGroup * vecs * kLanes);
      for (int v = 0; v < vecs; ++v)
        value[v] = Form::load_group(values + at + v * kLanes * Form::kGroup);
      join(value, w + j);
    }
    if (j < end) join_some(j, 0, end - j);
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) store(mixed + r * part + d + v * kLanes, sums[r][v]);
}

template <class Form, int rows>
inline void mix_rows(const Stretch<Form>& stretch, Span places,
                     const typename Form::Factor* weights, std::size_t stride, float* mixed) {
  if (places.empty()) return;
  int d = 0;
  for (; d + kVecs * kLanes <= stretch.view.value_stride; d += kVecs * kLanes)
    mix_tile<Form, rows, kVecs>(stretch, places, d, weights, stride, mixed);
  for (; d < stretch.view.value_stride; d += kLanes)
    mix_tile<Form, rows, 1>(stretch, places, d, weights, stride, mixed);
}

// Rows join the values that all of them see together, and each the others alone. A group that only
// some see whole is not for all.
template <class Form, int rows>
inline void mix_seen(const Stretch<Form>& stretch, const Span* places,
                     const typename Form::Factor* weights, std::size_t stride, float* mixed) {
  Span all = places[0];
  bool same = true;
  for (int r = 1; r < rows; ++r) {
    same = same && places[r].from == all.from && places[r].to == all.to;
    all = {larger(all.from, places[r].from), smaller(all.to, places[r].to)};
  }
  if (!same) {
    const int slot = all.to % stretch.view.key_stride;
    all.from = static_cast<int>(round_up(all.from, Form::kGroup));
    if (slot != stretch.view.page_size) all.to -= slot % Form::kGroup;
    if (all.empty()) all.to = all.from;
  }
  const std::size_t part = part_size(stretch.view.value_stride);
  for (int r = 0; r < rows; ++r)
    mix_rows<Form, 1>(stretch, {places[r].from, smaller(all.from, places[r].to)},
                      weights + r * stride, stride, mixed + r * part);
  mix_rows<Form, rows>(stretch, all, weights, stride, mixed);
  for (int r = 0; r < rows; ++r)
    mix_rows<Form, 1>(stretch, {larger(all.to, places[r].from), places[r].to},
                      weights + r * stride, stride, mixed + r * part);
}

// A query in the factors of its form: times the scale of scores, and in powers of two.
template <class Form>
inline void prepare_query(const AttentionView& view, const float* q, typename Form::Factor* out) {
  const Vec factor = splat(view.softcap == 0.0F ? view.scale * kLog2OfE : view.scale / view.softcap);
  int d = 0;
  for (; d + 2 * kLanes <= view.head_dim; d += 2 * kLanes)
    Form::put(out + d, mul(load(q + d), factor), mul(load(q + d + kLanes), factor));
  if (d == view.head_dim) return;
  float rest[2 * kLanes] = {};
  std::memcpy(rest, q + d, sizeof(float) * (view.head_dim - d));
  Form::put(out + d, mul(load(rest), factor), mul(load(rest + kLanes), factor));
}

template <class Form, int rows>
void attend_tile(const Stretch<Form>& stretch, const QueryRow* queries, const Span* places,
                 float* scratch, float* parts) {
  const AttentionView& view = stretch.view;
  Span any = places[0];
  for (int r = 0; r < rows; ++r)
    any = {smaller(any.from, places[r].from), larger(any.to, places[r].to)};
  if constexpr (Form::kBytes)
    return attend_bytes<rows>(stretch, queries, places, any, scratch, parts);
  const std::size_t q_stride = query_size(view.head_dim);
  const std::size_t stride = score_size(view.page_size, view.key_stride);
  auto* factors = reinterpret_cast<typename Form::Factor*>(scratch);
  float* scores = scratch + rows * q_stride;
  for (int r = 0; r < rows; ++r)
    prepare_query<Form>(view, queries[r].q, factors + r * q_stride);
  score_rows<Form, rows>(stretch, factors, q_stride, any, scores, stride);
  weigh<Form, rows>(stretch, places, scores, stride, parts);
  constexpr std::size_t kNarrow = sizeof(float) / sizeof(typename Form::Factor);
  mix_seen<Form, rows>(stretch, places, reinterpret_cast<typename Form::Factor*>(scores),
                       stride * kNarrow, parts);
}

template <class Form>
inline void attend_rows(const Stretch<Form>& stretch, const QueryRow* queries, int rows,
                        const Span* places, float* scratch, float* parts) {
  const auto run = rows == 1   ? attend_tile<Form, 1>
                   : rows == 2 ? attend_tile<Form, 2>
                   : rows == 3 ? attend_tile<Form, 3>
                   : rows == 4 ? attend_tile<Form, 4>
                   : rows == 5 ? attend_tile<Form, kRows < 5 ? 1 : 5>
                               : attend_tile<Form, kRows < 6 ? 1 : 6>;
  run(stretch, queries, places, scratch, parts);
}

// Where the pages of `any` lie, and what is read after them; `last`: of the pages that are known.
// First lines are asked for at once, so that the system's tables of where pages of memory lie are
// read for all of them together.
template <class Form>
inline void find_pages(Stretch<Form>& stretch, Span any, int last) {
  using Stored = typename Form::Stored;
  constexpr std::size_t kFirst = 128;  // bytes
  constexpr int kAhead = 8192;
  const AttentionView& view = stretch.view;
  const int vecs = view.key_stride / kLanes;
  const int first = any.from / view.key_stride;
  const int end = (any.to - 1) / view.key_stride + 1;
  const int of_vector = static_cast<int>(sizeof(Stored)) * view.head_dim * kLanes;
  const int of_page = static_cast<int>(sizeof(Stored)) * view.page_size * view.value_stride;
  stretch.vectors_ahead = larger(1, smaller(kAhead / of_vector, kPad - kVecs));
  stretch.pages_ahead = larger(1, smaller(kAhead / of_page, kAfter));
  for (int page = first; page < end; ++page) {
    for (int v = 0; v < vecs; ++v)
      stretch.keys[page * vecs + v] = stretch.keys_of(page) + v * kLanes * Form::kGroup;
    stretch.values[page] = stretch.values_of(page);
    ask_for(stretch.keys[page * vecs], kFirst);
    ask_for(stretch.values[page], kFirst);
    if constexpr (Form::kScaled) {
      ask_for(stretch.scales_of(view.key_scales, page), sizeof(float) * view.key_stride);
      ask_for(stretch.scales_of(view.value_scales, page), sizeof(float) * view.key_stride);
    }
  }
  for (int v = 0; v < stretch.vectors_ahead + kVecs; ++v)
    stretch.keys[end * vecs + v] =
        stretch.values[smaller(first + v / vecs, end - 1)] + v % vecs * kLanes * Form::kGroup;
  for (int page = end; page < end + stretch.pages_ahead; ++page) {
    stretch.values[page] = stretch.values[end - 1];
    if (page <= last)
      stretch.values[page] = stretch.keys_of(page);
    else if (last < end && stretch.after != nullptr)
      stretch.values[page] = static_cast<const Stored*>(stretch.after[page - end]);
  }
}

template <class Form>
void attend_stored(const AttentionView& view, const QueryRow* queries, int count,
                   const std::int32_t* pages, int kv_head, int stretch, const void* const* after,
                   float* scratch, float* parts) {
  [[maybe_unused]] const typename Form::Mode mode{};
  const std::size_t part = part_size(view.value_stride);
  const int length = stretch_pages(view.page_size) * view.page_size;
  const int base = stretch * length;
  const auto place_of = [&](int position) {
    return position / view.page_size * view.key_stride + position % view.page_size;
  };
  Span places[kQueryRows];
  Span any{view.key_stride * length, 0};
  int last = 0;
  for (int r = 0; r < count; ++r) {
    const int from = larger(queries[r].begin - base, 0);
    const int to = smaller(queries[r].end - base, length);
    last = larger(last, (queries[r].end - 1) / view.page_size - base / view.page_size);
    float* ends = parts + r * part + view.value_stride;
    places[r] = {0, 0};
    std::memset(parts + r * part, 0, sizeof(float) * part);
    ends[0] = -kInfinity;
    if (from >= to) continue;
    places[r] = {place_of(from), place_of(to - 1) + 1};
    any = {smaller(any.from, places[r].from), larger(any.to, places[r].to)};
  }
  if (any.empty()) return;
  auto** lists = reinterpret_cast<const typename Form::Stored**>(scratch);
  float* rest = scratch + list_size(view.page_size, view.key_stride);
  Stretch<Form> found{view, lists, lists + list_vectors(view.page_size, view.key_stride),
                      pages + base / view.page_size, kv_head, after};
  find_pages(found, any, last);
  for (int r = 0; r < count;) {
    if (places[r].empty()) {
      ++r;
      continue;
    }
    int rows = 1;
    while (rows < kRows && r + rows < count && !places[r + rows].empty()) ++rows;
    attend_rows(found, queries + r, rows, places + r, rest, parts + r * part);
    r += rows;
  }
}

void attend(const AttentionView& view, const QueryRow* queries, int count,
            const std::int32_t* pages, int kv_head, int stretch, const void* const* after,
            float* scratch, float* parts) {
  const auto run = view.number == CacheNumber::float16   ? attend_stored<Floats<Float16>>
                   : view.number == CacheNumber::float32 ? attend_stored<Floats<float>>
                   : view.number == CacheNumber::int8
                       ? view.rounded ? attend_stored<ByteProducts> : attend_stored<WideQuads>
                   : view.rounded ? attend_stored<PairProducts>
                                  : attend_stored<WidePairs>;
  run(view, queries, count, pages, kv_head, stretch, after, scratch, parts);
}

void join(const AttentionView& view, int count, const float* next, float* parts) {
  const int n = view.value_stride;
  for (int r = 0; r < count; ++r, next += part_size(n), parts += part_size(n)) {
    if (next[n] == -kInfinity && next[n + 1] == 0.0F) continue;  // it sees none of that stretch
    if (parts[n] == -kInfinity && parts[n + 1] == 0.0F) {
      std::memcpy(parts, next, sizeof(float) * part_size(n));
      continue;
    }
    const float most = next[n] > parts[n] ? next[n] : parts[n];
    const Vec keep = exp2(splat(parts[n] - most));
    const Vec take = exp2(splat(next[n] - most));
    for (int d = 0; d < n; d += kLanes)
      store(parts + d, fma(load(next + d), take, mul(load(parts + d), keep)));
    float factors[2][kLanes];
    store(factors[0], keep);
    store(factors[1], take);
    parts[n + 1] = parts[n + 1] * factors[0][0] + next[n + 1] * factors[1][0];
    parts[n] = most;
  }
}

void finish(const AttentionView& view, const QueryRow* queries, int count, const float* parts) {
  const int n = view.value_stride;
  for (int r = 0; r < count; ++r, parts += part_size(n))
    for (int d = 0; d < view.head_dim; ++d) queries[r].out[d] = parts[d] / parts[n + 1];
}

}  // namespace coldpress::COLDPRESS_ISA
