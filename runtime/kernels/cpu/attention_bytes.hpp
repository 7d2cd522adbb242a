// Attention over integers of eight bits, by integers: queries and weights have sixteen bits, in a
// high and a low piece of eight, and the processor multiplies bytes.
//
// A query is rounded to multiples of its largest magnitude / 32639, the weights of a stretch, each
// times the scale of its position's values, to multiples of the largest / 65535. Sums of integers
// are exact, whichever order they have.
#pragma once

#include "attention_scores.hpp"

namespace coldpress::COLDPRESS_ISA {

constexpr int kPiece = 256;
constexpr float kMostOfQuery = 127.0F * kPiece + 127.0F;
constexpr float kMostOfWeight = 65535.0F;
// Keys are multiplied as code + 128.
constexpr std::int32_t kKeyBias = 128;

// Vectors that `rows` rows share: sums of both pieces stay in registers.
#if defined(__AVX512F__)
constexpr int shared_vecs(int rows) { return rows <= 3 ? 4 : 2; }
#else
constexpr int shared_vecs(int rows) { return rows <= 2 ? 2 : 1; }
#endif

// Of four numbers their high pieces, then their low ones.
constexpr int kQuad = 8;

struct ByteQuery {
  const std::int8_t* pieces;
  std::int32_t high_start;  // what takes the keys' bias away
  std::int32_t low_start;
  float scale;
};

// A query times the scale of scores, and in powers of two; its pieces go to `out`.
inline ByteQuery prepare_bytes(const AttentionView& view, const float* q, std::int8_t* out) {
  constexpr float kSmallest = 1.17549435e-38F;
  const float factor = view.softcap == 0.0F ? view.scale * kLog2OfE : view.scale / view.softcap;
  const int n = view.head_dim;
  const auto scaled = [&](int d) {
    if (d + kLanes <= n) return mul(load(q + d), splat(factor));
    float rest[kLanes] = {};
    std::memcpy(rest, q + d, sizeof(float) * (n - d));
    return mul(load(rest), splat(factor));
  };
  Vec most = splat(0.0F);
  for (int d = 0; d < n; d += kLanes) most = max_bits(most, abs(scaled(d)));
  const std::uint32_t bits = max_lane_bits(most);
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  scale = bits >= 0x7F800000U ? __builtin_nanf("") : scale / kMostOfQuery;
  if (scale < kSmallest) scale = kSmallest;
  Vec highs = splat(0.0F);
  Vec lows = splat(0.0F);
  for (int d = 0; d < n; d += kLanes) {
    // Whole numbers; what is none is taken for zero, and has a scale that is none.
    const Vec near = max(div(scaled(d), splat(scale)), splat(-kMostOfQuery));
    const Vec whole = round_whole(min(near, splat(kMostOfQuery)));
    // A quarter moves ties up, where what is left fits a byte.
    const Vec high = round_whole(mul(add(whole, splat(0.25F)), splat(1.0F / kPiece)));
    const Vec rest = fma(high, splat(-1.0F * kPiece), whole);
    store_low_bytes(out + 2 * d, to_integers(high), to_integers(rest));
    highs = add(highs, high);
    lows = add(lows, rest);
  }
  return {out, -kKeyBias * sum_whole_lanes(highs), -kKeyBias * sum_whole_lanes(lows), scale};
}

inline Vec join_pieces(Integers high, Integers low) {
  return fma(to_floats(high), splat(1.0F * kPiece), to_floats(low));
}

// scores [rows][stride] of `vecs` vectors of places from `first` on.
template <int rows, int vecs>
inline void score_bytes(const Stretch<ByteProducts>& stretch, const ByteQuery* queries, int first,
                        float* scores, std::size_t stride) {
  const AttentionView& view = stretch.view;
  const Int8* const* keys = stretch.keys + first;
  const Int8* const* soon = keys + stretch.vectors_ahead;
  Integers high[rows][vecs];
  Integers low[rows][vecs];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) {
      high[r][v] = splat_integer(queries[r].high_start);
      low[r][v] = splat_integer(queries[r].low_start);
    }
  std::size_t at = 0;
  for (int d = 0; d < view.head_dim; d += 4, at += 4 * view.key_stride) {
    Integers key[vecs];
    for (int v = 0; v < vecs; ++v) {
      if (v % 2 == 0 || kLanes == 16) ask_for(soon[v] + at, 1);
      key[v] = biased_codes(load_codes(keys[v] + at));
    }
    for (int r = 0; r < rows; ++r) {
      const Integers h = splat_quad(queries[r].pieces + d / 4 * kQuad);
      const Integers l = splat_quad(queries[r].pieces + d / 4 * kQuad + kQuad / 2);
      for (int v = 0; v < vecs; ++v) high[r][v] = dot_bytes(high[r][v], key[v], h);
      for (int v = 0; v < vecs; ++v) low[r][v] = dot_bytes(low[r][v], key[v], l);
    }
  }
  // A place takes four bytes of a vector of keys, and of scales: they lie equally far apart.
  const std::ptrdiff_t between = reinterpret_cast<const char*>(view.key_scales) -
                                 static_cast<const char*>(view.keys);
  Vec scales[vecs];
  for (int v = 0; v < vecs; ++v)
    scales[v] = load(reinterpret_cast<const float*>(
        reinterpret_cast<const char*>(keys[v]) + between));
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    const Vec of_row = splat(queries[r].scale);
#pragma GCC unroll 8
    for (int v = 0; v < vecs; ++v)
      store(scores + r * stride + (first + v) * kLanes,
            mul(join_pieces(high[r][v], low[r][v]), mul(scales[v], of_row)));
  }
}

// Weights times the scales of their positions, from the floats of `row` on, become pieces in their
// place. What is no number becomes zero, and the row by its largest weight.
inline void store_pieces(Span all, float largest, float* row) {
  auto* pieces = reinterpret_cast<std::int8_t*>(row);
  const Vec inverse = splat(1.0F / largest);
  for (int j = all.from; j < all.to; j += kLanes) {
    const Vec near = max(mul(mul(load(row + j), inverse), splat(kMostOfWeight)), splat(0.0F));
    const Integers whole = to_integers(round_whole(near));
    store_low_bytes(pieces + j / 4 * kQuad, without_low_byte(whole), whole);
  }
}

// One vector of scores becomes weights times the scales of their positions; those weights, and the
// largest of the products, join `total` and `most`.
inline void weigh_vector(float* scores, float top, Vec scales, Vec& total, Vec& most) {
  const Vec x = sub(load(scores), splat(top));
  const Vec weight = exp2(x);
  total = add(total, weight);
  // Only what is hidden is so far below: the scale of what is not seen may be no number.
  const Vec scaled = zero_where_less(x, splat(-3.4e38F), mul(weight, scales));
  most = max_bits(most, scaled);
  store(scores, scaled);
}

// Scores [rows][stride] become pieces of weights in their place, zeros where a row does not see. A
// row's largest score and the sum of its weights go behind its part, its largest weight times a
// scale to `largest`.
template <int rows>
inline void weigh_bytes(const Stretch<ByteProducts>& stretch, const Span* places, Span any,
                        float* scores, std::size_t stride, float* parts, float* largest) {
  const AttentionView& view = stretch.view;
  const Span all{any.from / kLanes * kLanes, (any.to + kLanes - 1) / kLanes * kLanes};
  float tops[rows];
  Vec totals[rows];
  Vec most[rows];
  for (int r = 0; r < rows; ++r) {
    float* row = scores + r * stride;
    if (view.softcap != 0.0F) cap_row(view, places[r], row);
    hide(view, places[r], all, row);
    Vec top = splat(-kInfinity);
    for (int j = all.from; j < all.to; j += kLanes) top = max(top, load(row + j));
    tops[r] = max_lanes(top);
    totals[r] = most[r] = splat(0.0F);
  }
  const int n = view.key_stride;
  for (int page = all.from / n; page * n < all.to; ++page) {
    const float* of_page = stretch.scales_of(view.value_scales, page) - page * n;
    const int end = smaller(all.to, (page + 1) * n);
    for (int j = larger(all.from, page * n); j < end; j += kLanes)
      for (int r = 0; r < rows; ++r)
        weigh_vector(scores + r * stride + j, tops[r], load(of_page + j), totals[r], most[r]);
  }
  for (int r = 0; r < rows; ++r) {
    const std::uint32_t bits = max_lane_bits(most[r]);
    std::memcpy(largest + r, &bits, sizeof bits);
    float* ends = parts + r * part_size(view.value_stride) + view.value_stride;
    ends[0] = tops[r];
    ends[1] = sum_lanes(totals[r]);
    store_pieces(all, largest[r], scores + r * stride);
  }
}

// What rows see of the values' elements from d on; weights: [rows][stride] of pieces.
template <int rows, int vecs>
inline void mix_bytes(const Stretch<ByteProducts>& stretch, Span any, int d,
                      const std::int8_t* weights, std::size_t stride, const float* largest,
                      float* mixed) {
  const AttentionView& view = stretch.view;
  Integers high[rows][vecs];
  Integers low[rows][vecs];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) high[r][v] = low[r][v] = splat_integer(0);
  for (int page = any.from / view.key_stride; page * view.key_stride < any.to; ++page) {
    const int base = page * view.key_stride;
    const int end = smaller(any.to - base, view.page_size);
    const Int8* values = stretch.values[page] + d * 4;
    const Int8* next = stretch.values[page + stretch.pages_ahead] + d * 4;
    for (int j = larger(any.from - base, 0) / 4 * 4; j < end; j += 4) {
      const std::size_t at = static_cast<std::size_t>(j) * view.value_stride;
      ask_for(next + at, 4 * vecs * kLanes);
      Integers value[vecs];
      for (int v = 0; v < vecs; ++v) value[v] = load_codes(values + at + v * kLanes * 4);
      const std::int8_t* w = weights + (base + j) / 4 * kQuad;
      for (int r = 0; r < rows; ++r) {
        const Integers h = splat_quad(w + r * stride);
        const Integers l = splat_quad(w + r * stride + kQuad / 2);
        for (int v = 0; v < vecs; ++v) high[r][v] = dot_bytes(high[r][v], h, value[v]);
        for (int v = 0; v < vecs; ++v) low[r][v] = dot_bytes(low[r][v], l, value[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vecs; ++v)
      store(mixed + r * part_size(view.value_stride) + d + v * kLanes,
            mul(div(join_pieces(high[r][v], low[r][v]), splat(kMostOfWeight)), splat(largest[r])));
}

template <int rows>
inline void attend_bytes(const Stretch<ByteProducts>& stretch, const QueryRow* queries,
                         const Span* places, Span any, float* scratch, float* parts) {
  constexpr int kVecs = shared_vecs(rows);
  const AttentionView& view = stretch.view;
  const std::size_t q_size = query_size(view.head_dim);
  const std::size_t stride = score_size(view.page_size, view.key_stride);
  float* scores = scratch + rows * q_size;
  ByteQuery prepared[rows];
  for (int r = 0; r < rows; ++r)
    prepared[r] = prepare_bytes(view, queries[r].q,
                                reinterpret_cast<std::int8_t*>(scratch + r * q_size));
  int i = any.from / kLanes;
  const int end = (any.to + kLanes - 1) / kLanes;
  for (; i + kVecs <= end; i += kVecs)
    score_bytes<rows, kVecs>(stretch, prepared, i, scores, stride);
  for (; i < end; ++i) score_bytes<rows, 1>(stretch, prepared, i, scores, stride);
  float largest[rows];
  weigh_bytes<rows>(stretch, places, any, scores, stride, parts, largest);
  const auto* weights = reinterpret_cast<const std::int8_t*>(scores);
  int d = 0;
  for (; d + kVecs * kLanes <= view.value_stride; d += kVecs * kLanes)
    mix_bytes<rows, kVecs>(stretch, any, d, weights, stride * sizeof(float), largest, parts);
  for (; d < view.value_stride; d += kLanes)
    mix_bytes<rows, 1>(stretch, any, d, weights, stride * sizeof(float), largest, parts);
}

}  // namespace coldpress::COLDPRESS_ISA
