// Attention of a few rows over their pages (online softmax: Milakov & Gimelshein 2018).
//
// Pages are visited in order and every sum runs over positions in order, so a row's result depends
// on its own position and nothing else of the step. Rows share the loads of keys and values, and
// none reads a value that it does not see: it may be another request's, and not a number.
#include "simd.hpp"

namespace coldpress::COLDPRESS_ISA {

constexpr float kInfinity = __builtin_inff();
#if defined(__AVX512F__)
constexpr int kRows = 6;  // of queries, in one tile
constexpr int kValueVecs = 4;
#else
constexpr int kRows = 4;
constexpr int kValueVecs = 2;
#endif

// Positions [from, to) of a page, by `vecs` vectors from `j` on; scores: [rows][key_stride].
template <int rows, int vecs, class Stored>
inline void score_tile(const AttentionView& view, const QueryRow* queries, const Stored* keys, int j,
                       float* scores) {
  Vec sums[rows][vecs];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) sums[r][v] = splat(0.0F);
  for (int d = 0; d < view.head_dim; ++d, keys += view.key_stride) {
    Vec key[vecs];
    for (int v = 0; v < vecs; ++v) key[v] = load_floats(keys + j + v * kLanes);
    for (int r = 0; r < rows; ++r) {
      const Vec q = splat(queries[r].q[d]);
      for (int v = 0; v < vecs; ++v) sums[r][v] = fma(key[v], q, sums[r][v]);
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vecs; ++v) {
      Vec score = mul(sums[r][v], splat(view.scale));
      if (view.softcap != 0.0F)
        score = mul(splat(view.softcap), tanh(div(score, splat(view.softcap))));
      store(scores + r * view.key_stride + j + v * kLanes, score);
    }
  }
}

template <int rows, class Stored>
inline void score_rows(const AttentionView& view, const QueryRow* queries, const Stored* keys,
                       int from, int to, float* scores) {
  int j = from / kLanes * kLanes;
  for (; j + kLanes < to; j += 2 * kLanes) score_tile<rows, 2>(view, queries, keys, j, scores);
  if (j < to) score_tile<rows, 1>(view, queries, keys, j, scores);
}

// total: lane by lane, so that lanes are summed once and not for every page.
struct Softmax {
  float most = -kInfinity;
  Vec total = splat(0.0F);
};

// Turns one row's scores into weights; returns what earlier pages' sums are multiplied by.
inline Vec weigh_page(float* scores, int from, int to, Softmax& state) {
  const int first = from / kLanes * kLanes;
  for (int j = first; j < from; ++j) scores[j] = -kInfinity;
  for (int j = to; j % kLanes != 0; ++j) scores[j] = -kInfinity;
  Vec most = splat(state.most);
  for (int j = first; j < to; j += kLanes) most = max(most, load(scores + j));
  const float next = max_lanes(most);
  const Vec keep = exp(splat(state.most - next));
  state.most = next;
  state.total = mul(state.total, keep);
  for (int j = first; j < to; j += kLanes) {
    const Vec weight = exp(sub(load(scores + j), splat(next)));
    store(scores + j, weight);
    state.total = add(state.total, weight);
  }
  return keep;
}

// What earlier pages left is in `mixed`; values [from, to) join it.
template <int rows, int vecs, class Stored>
inline void mix_tile(const AttentionView& view, const Stored* values, const float* weights, int from,
                     int to, float* mixed) {
  Vec sums[rows][vecs];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) sums[r][v] = load(mixed + r * view.value_stride + v * kLanes);
  for (int j = from; j < to; ++j) {
    Vec value[vecs];
    for (int v = 0; v < vecs; ++v)
      value[v] = load_floats(values + static_cast<std::size_t>(j) * view.value_stride + v * kLanes);
    for (int r = 0; r < rows; ++r) {
      const Vec weight = splat(weights[r * view.key_stride + j]);
      for (int v = 0; v < vecs; ++v) sums[r][v] = fma(value[v], weight, sums[r][v]);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) store(mixed + r * view.value_stride + v * kLanes, sums[r][v]);
}

template <int rows, class Stored>
inline void mix_rows(const AttentionView& view, const Stored* values, const float* weights, int from,
                     int to, float* mixed) {
  if (from >= to) return;
  int d = 0;
  for (; d + kValueVecs * kLanes <= view.value_stride; d += kValueVecs * kLanes)
    mix_tile<rows, kValueVecs>(view, values + d, weights, from, to, mixed + d);
  for (; d < view.value_stride; d += kLanes)
    mix_tile<rows, 1>(view, values + d, weights, from, to, mixed + d);
}

struct Span {
  int from;
  int to;
};

inline int larger(int a, int b) { return a > b ? a : b; }
inline int smaller(int a, int b) { return a < b ? a : b; }

// The positions of a page that begins at `base` and that a row sees; from == to where it sees none.
inline Span seen(const QueryRow& row, int base, int page_size) {
  const int from = larger(row.begin - base, 0);
  return {from, larger(smaller(row.end - base, page_size), from)};
}

template <int rows, class Stored>
void attend_page(const AttentionView& view, const QueryRow* queries, int base, const Stored* keys,
                 const Stored* values, float* scores, float* mixed, Softmax* states) {
  Span spans[rows];
  Span any{view.page_size, 0};
  Span all{0, view.page_size};
  for (int r = 0; r < rows; ++r) {
    spans[r] = seen(queries[r], base, view.page_size);
    all = {larger(all.from, spans[r].from), smaller(all.to, spans[r].to)};
    if (spans[r].from < spans[r].to)
      any = {smaller(any.from, spans[r].from), larger(any.to, spans[r].to)};
  }
  if (any.from >= any.to) return;
  score_rows<rows>(view, queries, keys, any.from, any.to, scores);
  if (all.from > all.to) all.to = all.from;
  for (int r = 0; r < rows; ++r) {
    float* weights = scores + r * view.key_stride;
    float* row = mixed + r * view.value_stride;
    if (spans[r].from == spans[r].to) continue;
    const Vec keep = weigh_page(weights, spans[r].from, spans[r].to, states[r]);
    for (int d = 0; d < view.value_stride; d += kLanes) store(row + d, mul(load(row + d), keep));
    mix_rows<1>(view, values, weights, spans[r].from, smaller(all.from, spans[r].to), row);
  }
  mix_rows<rows>(view, values, scores, all.from, all.to, mixed);
  for (int r = 0; r < rows; ++r)
    mix_rows<1>(view, values, scores + r * view.key_stride, larger(all.to, spans[r].from),
                spans[r].to, mixed + r * view.value_stride);
}

template <class Stored>
inline void attend_rows(const AttentionView& view, const QueryRow* queries, int rows, int base,
                        const Stored* keys, const Stored* values, float* scores, float* mixed,
                        Softmax* states) {
  const auto run = rows == 1   ? attend_page<1, Stored>
                   : rows == 2 ? attend_page<2, Stored>
                   : rows == 3 ? attend_page<3, Stored>
                   : rows == 4 ? attend_page<4, Stored>
                   : rows == 5 ? attend_page<kRows < 5 ? 1 : 5, Stored>
                               : attend_page<kRows < 6 ? 1 : 6, Stored>;
  run(view, queries, base, keys, values, scores, mixed, states);
}

template <class Stored>
void attend_stored(const AttentionView& view, const QueryRow* queries, int count,
                   const std::int32_t* pages, int kv_head, float* scratch) {
  float* mixed = scratch + kQueryRows * view.key_stride;
  std::memset(mixed, 0, sizeof(float) * count * view.value_stride);
  Softmax states[kQueryRows];
  int begin = queries[0].begin;
  int end = 0;
  for (int r = 0; r < count; ++r) {
    begin = smaller(begin, queries[r].begin);
    end = larger(end, queries[r].end);
  }
  const std::size_t key_bytes = sizeof(Stored) * view.head_dim * view.key_stride;
  const std::size_t value_bytes = sizeof(Stored) * view.page_size * view.value_stride;
  for (int page = begin / view.page_size; page * view.page_size < end; ++page) {
    const std::size_t head = static_cast<std::size_t>(pages[page]) * view.kv_heads + kv_head;
    if ((page + 1) * view.page_size < end) {
      const std::size_t next = static_cast<std::size_t>(pages[page + 1]) * view.kv_heads + kv_head;
      prefetch(static_cast<const char*>(view.keys) + next * key_bytes, key_bytes);
      prefetch(static_cast<const char*>(view.values) + next * value_bytes, value_bytes);
    }
    const Stored* keys =
        static_cast<const Stored*>(view.keys) + head * view.head_dim * view.key_stride;
    const Stored* values =
        static_cast<const Stored*>(view.values) + head * view.page_size * view.value_stride;
    for (int r = 0; r < count; r += kRows)
      attend_rows(view, queries + r, smaller(kRows, count - r), page * view.page_size, keys, values,
                  scratch + r * view.key_stride, mixed + r * view.value_stride, states + r);
  }
  for (int r = 0; r < count; ++r) {
    const float total = sum_lanes(states[r].total);
    for (int d = 0; d < view.head_dim; ++d)
      queries[r].out[d] = mixed[r * view.value_stride + d] / total;
  }
}

void attend(const AttentionView& view, const QueryRow* queries, int count,
            const std::int32_t* pages, int kv_head, float* scratch) {
  const auto run =
      view.number == Number::float16 ? attend_stored<Float16> : attend_stored<float>;
  run(view, queries, count, pages, kv_head, scratch);
}

void narrow(const float* x, int n, std::uint16_t* out) {
  // The order of the operands lets NaN through.
  const auto within = [](Vec a) { return min(splat(65504.0F), max(splat(-65504.0F), a)); };
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store_float16(out + i, within(load(x + i)));
  if (i == n) return;
  float rest[kLanes] = {};
  std::uint16_t narrowed[kLanes];
  for (int j = i; j < n; ++j) rest[j - i] = x[j];
  store_float16(narrowed, within(load(rest)));
  for (int j = i; j < n; ++j) out[j] = narrowed[j - i];
}

}  // namespace coldpress::COLDPRESS_ISA
