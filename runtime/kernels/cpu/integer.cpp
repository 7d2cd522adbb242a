// Rows of int8 times one strip of a matrix in quads: bytes are multiplied and summed in int32, and
// each run of columns that shares its scales joins the float32 sum by one multiply-add.
//
// Scales and what goes with them are read where they lie, by every tile of rows: writing them out for
// all to share takes one row a fifth longer, and saves a prompt nothing.
#include "integer_products.hpp"

namespace coldpress::COLDPRESS_ISA {

// How far ahead a lone tile asks for its codes, as evenly as it reads them.
constexpr std::size_t kAhead = 16 * kQuadRow;
// So few tiles ask for the next strip, each for its share; of more, products take longer than memory.
// Evenly: requests that come at once hold up the loads behind them.
constexpr int kFetchingTiles = 6;

// How a matrix is stored, where code differs.
template <bool nibbles_, Shift shift_, bool nested_, int step_>
struct Stored {
  static constexpr bool nibbles = nibbles_;
  static constexpr Shift shift = shift_;
  static constexpr bool nested = nested_;
  static constexpr int step = step_;  // columns of one sum
};

// What is left of the rows.
struct Rows {
  RoundedRows x;
  const float* start;  // what the sums of each begin with
  float* out;
  std::size_t out_stride;
  const std::uint8_t* fetched;  // of the next strip
  std::size_t fetch_step;
};

template <class S>
inline COLDPRESS_INLINE GroupNumbers numbers_of(const MatrixView& m, std::size_t index) {
  if constexpr (S::nested) return nested_numbers(m, index);
  return group_numbers(m, index);
}

// `rows` rows times the channels of the strip from `channel` on.
template <class S, int rows, Fetch fetch>
void multiply_tile(const MatrixView& m, int strip, const Rows& t, int channel) {
  constexpr int vecs = vecs_of(rows);
  const std::uint8_t* codes = m.codes + strip * m.strip_bytes + channel * 4;
  const std::size_t numbers = static_cast<std::size_t>(strip) * m.groups * kStrip + channel;
  const std::size_t x_stride = t.x.stride;
  Vec totals[rows][vecs];
  unroll<rows>([&](auto r) COLDPRESS_INLINE {
    unroll<vecs>([&](auto v) COLDPRESS_INLINE {
      totals[r][v] = load(t.start + channel + v * kLanes);
    });
  });
  Stream stream{codes, codes + kAhead, kQuadRow};
  if constexpr (fetch == Fetch::next) stream = {codes, t.fetched, t.fetch_step};
  const std::int8_t* x = t.x.codes;
  constexpr int step = S::step;
  for (int k = 0, group = 0; k < m.columns; k += step, x += step) {
    while (m.group_starts[group + 1] <= k) ++group;
    GroupNumbers found[vecs];
    unroll<vecs>([&](auto v) COLDPRESS_INLINE {
      found[v] =
          numbers_of<S>(m, numbers + static_cast<std::size_t>(group) * kStrip + v * kLanes);
    });
    std::int32_t sums[rows];
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      sums[r] = sum_of_codes<step>(t.x.sums + r * (x_stride / kSumRun) + k / kSumRun);
    });
    Integers products[rows][vecs];
    start_products<rows, vecs, S::shift>(
        m.quad_bias, [&](auto v) COLDPRESS_INLINE { return found[v].shift; }, sums, products);
    add_step<S::nibbles, step, fetch>(stream, x, x_stride, products);
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      const float x_scale = t.x.scales[r * (x_stride / kRun) + k / kRun];
      unroll<vecs>([&](auto v) COLDPRESS_INLINE {
        const Vec scale = mul(found[v].scale, splat(x_scale));
        totals[r][v] = fma(to_floats(products[r][v]), scale, totals[r][v]);
        if constexpr (S::shift == Shift::minimum)
          totals[r][v] =
              fma(found[v].shift, splat(x_scale * static_cast<float>(sums[r])), totals[r][v]);
      });
    });
  }
  unroll<rows>([&](auto r) COLDPRESS_INLINE {
    unroll<vecs>([&](auto v) COLDPRESS_INLINE {
      store(t.out + r * t.out_stride + channel + v * kLanes, totals[r][v]);
    });
  });
}

// All channels of the strip; `t` is moved on behind these rows.
template <class S, int rows, Fetch fetch>
inline void multiply_strip(const MatrixView& m, int strip, Rows& t) {
  for (int channel = 0; channel < kStrip; channel += vecs_of(rows) * kLanes) {
    multiply_tile<S, rows, fetch>(m, strip, t, channel);
    if constexpr (fetch == Fetch::next) t.fetched += m.columns / (S::nibbles ? 8 : 4) * t.fetch_step;
  }
  t.x = t.x.from(rows);
  t.out += rows * t.out_stride;
}

// rows: 1 to `most`, which are kTileRows at first.
template <class S, Fetch fetch, int most = kTileRows>
inline void multiply_some(const MatrixView& m, int strip, Rows& t, int rows) {
  // Every tile is code of its own: what only small tiles of many, or rare matrices, would ask for is not
  // worth compiling.
  constexpr bool asks = fetch == Fetch::own || (most > kTileRows / 2 && S::step == kRun);
  if constexpr (most > 1)
    if (rows < most) return multiply_some<S, fetch, most - 1>(m, strip, t, rows);
  multiply_strip<S, most, asks ? fetch : Fetch::own>(m, strip, t);
}

// Tiles of nearly equal size, so that none is alone with one row.
template <class S>
void multiply_rows(const MatrixView& m, int strip, Rows& t, int rows) {
  if (rows <= kTileRows) return multiply_some<S, Fetch::own>(m, strip, t, rows);
  const int tiles = (rows + kTileRows - 1) / kTileRows;
  const bool fetches = tiles <= kFetchingTiles;
  const int passes = tiles * kStripVecs / vecs_of(kTileRows);
  t.fetched = m.codes + (fetches ? strip + 1 : strip) * m.strip_bytes;
  t.fetch_step = fetches ? (kQuadRow + passes - 1) / passes : 0;
  for (int i = 0; i < tiles; ++i)
    multiply_some<S, Fetch::next>(m, strip, t, rows * (i + 1) / tiles - rows * i / tiles);
}

template <bool nibbles, int step>
constexpr auto product_of(const MatrixView& m) {
  using enum Shift;
  if (m.zero_points != nullptr) return multiply_rows<Stored<nibbles, zero_point, false, step>>;
  if (m.minimums == nullptr) return multiply_rows<Stored<nibbles, none, false, step>>;
  // Those of GGUF with four and five bits, the usual ones.
  if (step == kRun && m.sub_scales != nullptr)
    return multiply_rows<Stored<nibbles, minimum, step == kRun, step>>;
  return multiply_rows<Stored<nibbles, minimum, false, step>>;
}

template <bool nibbles>
constexpr auto product_of(const MatrixView& m) {
  return m.quad_step == kRun ? product_of<nibbles, kRun>(m) : product_of<nibbles, kSumRun>(m);
}

void linear_int8(const MatrixView& m, int strip, const RoundedRows& x, int rows, const float* bias,
                 float* out, std::size_t out_stride) {
  static constexpr float kZeros[kStrip] = {};
  const float* start = bias != nullptr ? bias + strip * kStrip : kZeros;
  Rows t{x, start, out + strip * kStrip, out_stride, nullptr, 0};
  (m.codes_type == Codes::int4 ? product_of<true>(m) : product_of<false>(m))(m, strip, t, rows);
}

}  // namespace coldpress::COLDPRESS_ISA
