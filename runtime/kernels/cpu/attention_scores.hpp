// Attention's first half: scores of a stretch of positions, and their softmax.
//
// A place is a position of the stretch as keys lie: pages are padded to whole vectors.
#pragma once

#include "attention_forms.hpp"

namespace coldpress::COLDPRESS_ISA {

constexpr float kInfinity = __builtin_inff();
constexpr float kLog2OfE = 1.44269504F;
#if defined(__AVX512F__)
constexpr int kRows = 6;  // of queries, in one tile
constexpr int kVecs = 4;  // of keys or values
#else
constexpr int kRows = 4;
constexpr int kVecs = 2;
#endif

struct Span {
  int from;
  int to;
  bool empty() const { return from >= to; }
};

inline int larger(int a, int b) { return a > b ? a : b; }
inline int smaller(int a, int b) { return a < b ? a : b; }

// Asks the nearest cache for memory that is to be read next.
inline void ask_for(const void* memory, std::size_t bytes) {
  for (std::size_t line = 0; line < bytes; line += 64)
    __builtin_prefetch(static_cast<const char*>(memory) + line, 0, 3);
}

// What a call reads: keys, vector by vector of places, and values, page by page, of one head. Behind
// the last of either is what is read next, which is asked for as the last ones are read: few lines
// at a time can be on their way, and asking for many at once would halt whoever asks.
template <class Form>
struct Stretch {
  using Stored = typename Form::Stored;
  const AttentionView& view;
  const Stored** keys;
  const Stored** values;
  const std::int32_t* pages;  // of the stretch
  int kv_head;
  const void* const* after;  // what is read when all is done [kAfter], or nullptr
  int vectors_ahead = 0;     // how many vectors of keys are asked for before they are read
  int pages_ahead = 0;       // and how many pages of values

  const void* of_head(const void* first, int page) const {
    return static_cast<const char*>(first) + view.head_at(pages[page], kv_head);
  }
  const Stored* keys_of(int page) const {
    return static_cast<const Stored*>(of_head(view.keys, page));
  }
  const Stored* values_of(int page) const {
    return static_cast<const Stored*>(of_head(view.values, page));
  }
  const float* scales_of(const float* first, int page) const {
    return static_cast<const float*>(of_head(first, page));
  }
};

// scores [rows][stride] of `vecs` vectors of places from `first` on; queries: [rows][q_stride].
template <class Form, int rows, int vecs>
inline void score_tile(const Stretch<Form>& stretch, const typename Form::Factor* queries,
                       std::size_t q_stride, int first, float* scores, std::size_t stride) {
  using Stored = typename Form::Stored;
  const AttentionView& view = stretch.view;
  const Stored* const* keys = stretch.keys + first;
  const Stored* const* soon = keys + stretch.vectors_ahead;
  Vec sums[rows][vecs];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) sums[r][v] = splat(0.0F);
  std::size_t at = 0;
  for (int d = 0; d < view.head_dim; d += Form::kGroup, at += Form::kGroup * view.key_stride) {
    typename Form::Loaded key[vecs];
    for (int v = 0; v < vecs; ++v) {
      if (v % 2 == 0 || sizeof(Stored) * Form::kGroup * kLanes >= 64)
        ask_for(soon[v] + at, 1);
      key[v] = Form::load_group(keys[v] + at);
    }
    for (int r = 0; r < rows; ++r) {
      const typename Form::Splat q = Form::splat_group(queries + r * q_stride + d);
      for (int v = 0; v < vecs; ++v) sums[r][v] = Form::multiply(sums[r][v], key[v], q);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) store(scores + r * stride + (first + v) * kLanes, sums[r][v]);
}

template <class Form, int rows>
inline void score_rows(const Stretch<Form>& stretch, const typename Form::Factor* queries,
                       std::size_t q_stride, Span places, float* scores, std::size_t stride) {
  int i = places.from / kLanes;
  const int end = (places.to + kLanes - 1) / kLanes;
  for (; i + kVecs <= end; i += kVecs)
    score_tile<Form, rows, kVecs>(stretch, queries, q_stride, i, scores, stride);
  if (kVecs > 2 && i + 2 <= end) {
    score_tile<Form, rows, 2>(stretch, queries, q_stride, i, scores, stride);
    i += 2;
  }
  if (i < end) score_tile<Form, rows, 1>(stretch, queries, q_stride, i, scores, stride);
}

// One row's scores, or weights, times the scales of their positions.
template <class Form>
inline void scale_row(const Stretch<Form>& stretch, const float* scales, Span places, float* x) {
  const int n = stretch.view.key_stride;
  for (int page = places.from / n; page * n < places.to; ++page) {
    const float* of_page = stretch.scales_of(scales, page) - page * n;
    const int end = smaller(places.to, (page + 1) * n);
    for (int j = larger(places.from / kLanes * kLanes, page * n); j < end; j += kLanes)
      store(x + j, mul(load(x + j), load(of_page + j)));
  }
}

inline void cap_row(const AttentionView& view, Span places, float* x) {
  for (int j = places.from / kLanes * kLanes; j < places.to; j += kLanes)
    store(x + j, mul(splat(view.softcap * kLog2OfE), tanh(load(x + j))));
}

// What is not seen, up to whole vectors and among the seen, scores nothing.
inline void hide(const AttentionView& view, Span places, Span all, float* scores) {
  for (int j = all.from; j < places.from; ++j) scores[j] = -kInfinity;
  for (int j = places.to; j < all.to; ++j) scores[j] = -kInfinity;
  const int n = view.key_stride;
  if (n == view.page_size) return;
  for (int page = all.from / n; page * n < places.to; ++page)
    for (int j = page * n + view.page_size; j < (page + 1) * n; ++j) scores[j] = -kInfinity;
}

// Turns scores [rows][stride], in powers of two, into weights that lie in their place; a row's largest
// score and the sum of its weights go behind its part. Rows take turns, so that none waits alone.
template <class Form, int rows>
inline void weigh(const Stretch<Form>& stretch, const Span* places, float* scores,
                  std::size_t stride, float* parts) {
  constexpr int kStep = 2 * kLanes;
  const AttentionView& view = stretch.view;
  const std::size_t part = part_size(view.value_stride);
  Span all[rows];
  Vec most[rows];
  for (int r = 0; r < rows; ++r) {
    float* row = scores + r * stride;
    all[r] = {places[r].from / kStep * kStep, (places[r].to + kStep - 1) / kStep * kStep};
    if constexpr (Form::kScaled) scale_row(stretch, view.key_scales, places[r], row);
    if (view.softcap != 0.0F) cap_row(view, places[r], row);
    hide(view, places[r], all[r], row);
    most[r] = splat(-kInfinity);
    for (int j = all[r].from; j < all[r].to; j += kLanes) most[r] = max(most[r], load(row + j));
  }
  float largest[rows];
  for (int r = 0; r < rows; ++r) largest[r] = max_lanes(most[r]);
  Vec totals[rows];
  for (int r = 0; r < rows; ++r) {
    const float* row = scores + r * stride;
    auto* weights = reinterpret_cast<typename Form::Factor*>(scores + r * stride);
    const Vec top = splat(largest[r]);
    Vec total = splat(0.0F);
    for (int j = all[r].from; j < all[r].to; j += kStep) {
      const Vec first = exp2(sub(load(row + j), top));
      const Vec second = exp2(sub(load(row + j + kLanes), top));
      total = Form::put_weights(total, weights + j, first, second);
    }
    totals[r] = total;
  }
  for (int r = 0; r < rows; ++r) {
    float* ends = parts + r * part + view.value_stride;
    ends[0] = largest[r];
    ends[1] = sum_lanes(totals[r]);
    if constexpr (Form::kScaled) {
      float* row = scores + r * stride;
      scale_row(stretch, view.value_scales, places[r], row);
      // The rest of a group: a scale that is not seen may be no number.
      const int first = places[r].from;
      for (int j = first / Form::kGroup * Form::kGroup; j < first; ++j) row[j] = 0.0F;
      for (int j = places[r].to; j % Form::kGroup != 0; ++j) row[j] = 0.0F;
    }
  }
}

}  // namespace coldpress::COLDPRESS_ISA
