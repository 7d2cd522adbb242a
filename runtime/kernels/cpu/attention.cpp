// Attention of a few rows over their pages (online softmax: Milakov & Gimelshein 2018).
//
// Pages are visited in order and every sum runs over positions in order, stretch by stretch, so a
// row's result depends on its own position and nothing else of the step. Rows share the loads of
// keys and values, and none reads a value that it does not see: it may be another request's, and
// not a number.
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

template <class Stored>
constexpr bool kScaled = false;
template <>
constexpr bool kScaled<Int8> = true;

// One head's keys and values of a page, and their scales where they are integers. What lies in the
// same places of the page that is read next is asked for as these are read: few lines at a time can
// be on their way, and asking for many at once would halt whoever asks.
template <class Stored>
struct Cached {
  const Stored* keys;
  const Stored* values;
  const Stored* next_keys;  // of the same page where there is no next
  const Stored* next_values;
  const float* key_scales;
  const float* value_scales;
};

// `vecs` vectors of positions from `j` on; scores: [rows][key_stride].
template <int rows, int vecs, class Stored>
inline void score_tile(const AttentionView& view, const QueryRow* queries,
                       const Cached<Stored>& page, int j, float* scores) {
  const Stored* keys = page.keys;
  const Stored* next = page.next_keys;
  Vec sums[rows][vecs];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) sums[r][v] = splat(0.0F);
  for (int d = 0; d < view.head_dim; ++d, keys += view.key_stride, next += view.key_stride) {
    prefetch(next + j, sizeof(Stored) * vecs * kLanes);
    Vec key[vecs];
    for (int v = 0; v < vecs; ++v) key[v] = load_floats(keys + j + v * kLanes);
    for (int r = 0; r < rows; ++r) {
      const Vec q = splat(queries[r].q[d]);
      for (int v = 0; v < vecs; ++v) sums[r][v] = fma(key[v], q, sums[r][v]);
    }
  }
  Vec scales[vecs];
  for (int v = 0; v < vecs; ++v) {
    scales[v] = splat(view.scale);
    if constexpr (kScaled<Stored>) scales[v] = mul(scales[v], load(page.key_scales + j + v * kLanes));
  }
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vecs; ++v) {
      Vec score = mul(sums[r][v], scales[v]);
      if (view.softcap != 0.0F)
        score = mul(splat(view.softcap), tanh(div(score, splat(view.softcap))));
      store(scores + r * view.key_stride + j + v * kLanes, score);
    }
  }
}

template <int rows, class Stored>
inline void score_rows(const AttentionView& view, const QueryRow* queries,
                       const Cached<Stored>& page, int from, int to, float* scores) {
  int j = from / kLanes * kLanes;
  for (; j + kLanes < to; j += 2 * kLanes) score_tile<rows, 2>(view, queries, page, j, scores);
  if (j < to) score_tile<rows, 1>(view, queries, page, j, scores);
}

// total: lane by lane, so that lanes are summed once and not for every page.
struct Softmax {
  float most = -kInfinity;
  Vec total = splat(0.0F);
};

// Turns one row's scores into weights, each times its value's scale where `value_scales` are given;
// returns what earlier pages' sums are multiplied by.
inline Vec weigh_page(float* scores, int from, int to, const float* value_scales, Softmax& state) {
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
    store(scores + j, value_scales == nullptr ? weight : mul(weight, load(value_scales + j)));
    state.total = add(state.total, weight);
  }
  return keep;
}

// What earlier pages left is in `mixed`; values [from, to) join it.
template <int rows, int vecs, class Stored>
inline void mix_tile(const AttentionView& view, const Cached<Stored>& page, int d,
                     const float* weights, int from, int to, float* mixed) {
  const std::size_t part = part_size(view.value_stride);
  Vec sums[rows][vecs];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) sums[r][v] = load(mixed + r * part + v * kLanes);
  for (int j = from; j < to; ++j) {
    Vec value[vecs];
    const std::size_t at = static_cast<std::size_t>(j) * view.value_stride + d;
    prefetch(page.next_values + at, sizeof(Stored) * vecs * kLanes);
    for (int v = 0; v < vecs; ++v) value[v] = load_floats(page.values + at + v * kLanes);
    for (int r = 0; r < rows; ++r) {
      const Vec weight = splat(weights[r * view.key_stride + j]);
      for (int v = 0; v < vecs; ++v) sums[r][v] = fma(value[v], weight, sums[r][v]);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) store(mixed + r * part + v * kLanes, sums[r][v]);
}

template <int rows, class Stored>
inline void mix_rows(const AttentionView& view, const Cached<Stored>& page, const float* weights,
                     int from, int to, float* mixed) {
  if (from >= to) return;
  int d = 0;
  for (; d + kValueVecs * kLanes <= view.value_stride; d += kValueVecs * kLanes)
    mix_tile<rows, kValueVecs>(view, page, d, weights, from, to, mixed + d);
  for (; d < view.value_stride; d += kLanes)
    mix_tile<rows, 1>(view, page, d, weights, from, to, mixed + d);
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
void attend_page(const AttentionView& view, const QueryRow* queries, int base,
                 const Cached<Stored>& page, float* scores, float* mixed, Softmax* states) {
  const std::size_t part = part_size(view.value_stride);
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
  score_rows<rows>(view, queries, page, any.from, any.to, scores);
  if (all.from > all.to) all.to = all.from;
  for (int r = 0; r < rows; ++r) {
    float* weights = scores + r * view.key_stride;
    float* row = mixed + r * part;
    if (spans[r].from == spans[r].to) continue;
    const Vec keep = weigh_page(weights, spans[r].from, spans[r].to, page.value_scales, states[r]);
    for (int d = 0; d < view.value_stride; d += kLanes) store(row + d, mul(load(row + d), keep));
    mix_rows<1>(view, page, weights, spans[r].from, smaller(all.from, spans[r].to), row);
  }
  mix_rows<rows>(view, page, scores, all.from, all.to, mixed);
  for (int r = 0; r < rows; ++r)
    mix_rows<1>(view, page, scores + r * view.key_stride, larger(all.to, spans[r].from),
                spans[r].to, mixed + r * part);
}

template <class Stored>
inline void attend_rows(const AttentionView& view, const QueryRow* queries, int rows, int base,
                        const Cached<Stored>& page, float* scores, float* mixed, Softmax* states) {
  const auto run = rows == 1   ? attend_page<1, Stored>
                   : rows == 2 ? attend_page<2, Stored>
                   : rows == 3 ? attend_page<3, Stored>
                   : rows == 4 ? attend_page<4, Stored>
                   : rows == 5 ? attend_page<kRows < 5 ? 1 : 5, Stored>
                               : attend_page<kRows < 6 ? 1 : 6, Stored>;
  run(view, queries, base, page, scores, mixed, states);
}

// The keys and values of one head of a page; head and next: (page, head) counted through.
template <class Stored>
inline Cached<Stored> cached(const AttentionView& view, std::size_t head, std::size_t next) {
  const Stored* keys = static_cast<const Stored*>(view.keys);
  const Stored* values = static_cast<const Stored*>(view.values);
  const std::size_t key_size = static_cast<std::size_t>(view.head_dim) * view.key_stride;
  const std::size_t value_size = static_cast<std::size_t>(view.page_size) * view.value_stride;
  const std::size_t scale = head * view.key_stride;
  return {keys + head * key_size,
          values + head * value_size,
          keys + next * key_size,
          values + next * value_size,
          kScaled<Stored> ? view.key_scales + scale : nullptr,
          kScaled<Stored> ? view.value_scales + scale : nullptr};
}

template <class Stored>
void attend_stored(const AttentionView& view, const QueryRow* queries, int count,
                   const std::int32_t* pages, int kv_head, int stretch, float* scores,
                   float* parts) {
  const std::size_t part = part_size(view.value_stride);
  std::memset(parts, 0, sizeof(float) * count * part);
  Softmax states[kQueryRows];
  const int length = stretch_pages(view.page_size);
  int begin = (stretch + 1) * length * view.page_size;
  int end = 0;
  for (int r = 0; r < count; ++r) {
    begin = smaller(begin, queries[r].begin);
    end = larger(end, queries[r].end);
  }
  const int last = (end - 1) / view.page_size;
  const int stop = smaller(last + 1, (stretch + 1) * length);
  for (int page = larger(begin / view.page_size, stretch * length); page < stop; ++page) {
    const auto head_of = [&](int p) {
      return static_cast<std::size_t>(pages[p]) * view.kv_heads + kv_head;
    };
    const std::size_t next = head_of(smaller(page + 1, last));
    const Cached<Stored> current = cached<Stored>(view, head_of(page), next);
    if constexpr (kScaled<Stored>) {
      prefetch(view.key_scales + next * view.key_stride, sizeof(float) * view.key_stride);
      prefetch(view.value_scales + next * view.key_stride, sizeof(float) * view.key_stride);
    }
    for (int r = 0; r < count; r += kRows)
      attend_rows(view, queries + r, smaller(kRows, count - r), page * view.page_size, current,
                  scores + r * view.key_stride, parts + r * part, states + r);
  }
  for (int r = 0; r < count; ++r) {
    float* ends = parts + r * part + view.value_stride;
    ends[0] = states[r].most;
    ends[1] = sum_lanes(states[r].total);
  }
}

void attend(const AttentionView& view, const QueryRow* queries, int count,
            const std::int32_t* pages, int kv_head, int stretch, float* scores, float* parts) {
  const auto run = view.number == CacheNumber::float16 ? attend_stored<Float16>
                   : view.number == CacheNumber::int8  ? attend_stored<Int8>
                                                       : attend_stored<float>;
  run(view, queries, count, pages, kv_head, stretch, scores, parts);
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
    const Vec keep = exp(splat(parts[n] - most));
    const Vec take = exp(splat(next[n] - most));
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
