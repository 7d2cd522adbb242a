// Rows of int8 times one strip of a matrix in quads: bytes are multiplied and summed in int32, and
// each run of columns that shares its scales joins the float32 sum by one multiply-add.
#include "integer_few.hpp"
#include "integer_products.hpp"

namespace coldpress::COLDPRESS_ISA {

#if defined(__AVX512F__)
// Products and sums of a tile all stay in registers. Storing sums after every run costs as much as
// a quarter of its products.
constexpr int kRows = 6;
constexpr bool keeps_totals(int) { return true; }
#else
constexpr int kRows = 4;
constexpr bool keeps_totals(int rows) { return rows <= 2; }
#endif
// How far ahead a tile asks for its weights when it takes half of a strip at a time: the processor
// guesses well what is read from end to end, and badly every other 128 bytes.
constexpr std::size_t kAhead = 16 * kQuadRow;
// So few tiles of rows ask for the next strip, each for its share; of more, products take longer than
// memory. Evenly: requests that come at once hold up the loads behind them.
constexpr int kFetchingTiles = 6;
// Steps of columns whose codes and numbers stay in the first-level cache while all rows pass.
constexpr int kSteps = 32;
static_assert(2 * kSteps <= kPanel + 1);

// Where the tile's rows and channels begin.
struct IntegerTile {
  const std::uint8_t* codes;
  RoundedRows x;
  const float* start;  // what the sums begin with
  std::size_t start_stride;
  float* out;
  std::size_t out_stride;
  int columns;
  int bias;
  const std::uint8_t* fetched;  // what is asked for beside the first eight or four columns
  std::size_t fetch_step;       // from there on
  const float* scales;  // [steps][kStrip]
  const float* shifts;  // the same: zero points, or minimums
};

template <bool nibbles, Shift shift, int step, int rows, Fetch fetch>
void multiply_tile(const IntegerTile& t, int channel) {
  constexpr int vecs = vecs_of(rows);
  constexpr bool kKeep = keeps_totals(rows);
  Vec totals[kKeep ? rows : 1][vecs];
  const std::size_t x_stride = t.x.stride;
  const std::size_t sums_stride = x_stride / kSumRun;
  const std::size_t scales_stride = x_stride / kRun;
  const std::size_t out_stride = t.out_stride;
  float* const out = t.out + channel;
  const float* from = t.start + channel;
  std::size_t from_stride = t.start_stride;
  if constexpr (kKeep)
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      unroll<vecs>([&](auto v) COLDPRESS_INLINE {
        totals[r][v] = load(from + r * from_stride + v * kLanes);
      });
    });
  Stream stream{t.codes + channel * 4, t.fetched, t.fetch_step};
  const float* weights = t.scales + channel;
  const float* shifts = t.shifts + channel;
  const std::int8_t* x = t.x.codes;
  const float* x_scales = t.x.scales;
  const std::int32_t* x_sums = t.x.sums;
  for (const std::int8_t* const end = x + t.columns; x < end;) {
    std::int32_t sums[rows];
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      sums[r] = sum_of_codes<step>(x_sums + r * sums_stride);
    });
    Integers products[rows][vecs];
    const auto zero_points = [&](int v) COLDPRESS_INLINE { return load(shifts + v * kLanes); };
    start_products<rows, vecs, shift>(t.bias, zero_points, sums, products);
    add_step<nibbles, step, fetch>(stream, x, x_stride, products);
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      const float x_scale = x_scales[r * scales_stride];
      unroll<vecs>([&](auto v) COLDPRESS_INLINE {
        Vec total;
        if constexpr (kKeep) {
          total = totals[r][v];
        } else {
          total = load(from + r * from_stride + v * kLanes);
        }
        const Vec scale = mul(load(weights + v * kLanes), splat(x_scale));
        total = fma(to_floats(products[r][v]), scale, total);
        if constexpr (shift == Shift::minimum)
          total = fma(load(shifts + v * kLanes), splat(x_scale * static_cast<float>(sums[r])), total);
        if constexpr (kKeep) {
          totals[r][v] = total;
        } else {
          store(out + r * out_stride + v * kLanes, total);
        }
      });
    });
    from = out;
    from_stride = out_stride;
    weights += kStrip;
    shifts += kStrip;
    x += step;
    x_sums += step / kSumRun;
    if (step == kRun || (x - t.x.codes) % kRun == 0) ++x_scales;
  }
  if constexpr (kKeep)
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      unroll<vecs>([&](auto v) COLDPRESS_INLINE {
        store(out + r * out_stride + v * kLanes, totals[r][v]);
      });
    });
}

// Moves the tile on by its rows. It is never copied: what was just written must not be read in larger
// pieces than it was written in.
template <bool nibbles, Shift shift, int step, int rows, Fetch fetch>
inline void multiply_tiles(IntegerTile& t) {
  constexpr int vecs = vecs_of(rows);
  for (int v = 0; v < kStripVecs; v += vecs) {
    multiply_tile<nibbles, shift, step, rows, fetch>(t, v * kLanes);
    if (fetch == Fetch::next) t.fetched += t.columns / (nibbles ? 8 : 4) * t.fetch_step;
  }
  t.x = t.x.from(rows);
  t.start += rows * t.start_stride;
  t.out += rows * t.out_stride;
}

template <bool nibbles, Shift shift, int step>
void multiply_rows(IntegerTile t, int rows) {
  t.fetched = t.codes + kAhead;
  t.fetch_step = kQuadRow;
  if (rows == kRows) return multiply_tiles<nibbles, shift, step, kRows, Fetch::own>(t);
  const int tiles = rows / kRows;
  if (tiles > 0 && tiles <= kFetchingTiles) {
    const int passes = tiles * kStripVecs / vecs_of(kRows);
    t.fetched = t.codes + t.columns / (nibbles ? 8 : 4) * kQuadRow;
    t.fetch_step = (kQuadRow + passes - 1) / passes;
    for (; rows >= kRows; rows -= kRows)
      multiply_tiles<nibbles, shift, step, kRows, Fetch::next>(t);
  }
  for (; rows >= kRows; rows -= kRows)
    multiply_tiles<nibbles, shift, step, kRows, Fetch::none>(t);
  if (tiles > 0) {  // there is nothing left to ask for
    t.fetched = t.codes;
    t.fetch_step = 0;
  }
  switch (rows) {
    case 5: return multiply_tiles<nibbles, shift, step, 5, Fetch::own>(t);
    case 4: return multiply_tiles<nibbles, shift, step, 4, Fetch::own>(t);
    case 3: return multiply_tiles<nibbles, shift, step, 3, Fetch::none>(t);
    case 2: return multiply_tiles<nibbles, shift, step, 2, Fetch::none>(t);
    case 1: return multiply_tiles<nibbles, shift, step, 1, Fetch::none>(t);
    default: return;
  }
}

template <bool nibbles, int step>
inline void multiply_steps(const MatrixView& m, const IntegerTile& t, int rows) {
  if (m.zero_points != nullptr) return multiply_rows<nibbles, Shift::zero_point, step>(t, rows);
  if (m.minimums != nullptr) return multiply_rows<nibbles, Shift::minimum, step>(t, rows);
  multiply_rows<nibbles, Shift::none, step>(t, rows);
}

template <bool nibbles>
inline void multiply_columns(const MatrixView& m, const IntegerTile& t, int rows) {
  m.quad_step == kRun ? multiply_steps<nibbles, kRun>(m, t, rows)
                      : multiply_steps<nibbles, kSumRun>(m, t, rows);
}

// The numbers of columns [from, to), step by step; `group` is moved on to that of the last. `codes` of
// `step_bytes` for each step are asked for meanwhile: three rows would wait for them. May be null.
inline void expand_numbers(const MatrixView& m, int strip, int from, int to, int& group,
                           float* panel, const std::uint8_t* codes, std::size_t step_bytes) {
  const std::size_t first = static_cast<std::size_t>(strip) * m.groups * kStrip;
  const bool shifted = m.zero_points != nullptr || m.minimums != nullptr;
  for (int k = from; k < to; k += m.quad_step, panel += kStrip) {
    if (codes != nullptr) {
      request(codes, step_bytes);
      codes += step_bytes;
    }
    while (m.group_starts[group + 1] <= k) ++group;
    const std::size_t numbers = first + static_cast<std::size_t>(group) * kStrip;
    for (int v = 0; v < kStrip; v += kLanes) {
      const GroupNumbers found = group_numbers(m, numbers + v);
      store(panel + v, found.scale);
      if (shifted) store(panel + kSteps * kStrip + v, found.shift);
    }
  }
}

void linear_int8(const MatrixView& m, int strip, const RoundedRows& x, int rows, const float* bias,
                 float* out, std::size_t out_stride, float* panel) {
  static constexpr float kZeros[kStrip] = {};
  const float* start = bias != nullptr ? bias + strip * kStrip : kZeros;
  if (rows <= kFewRows)
    return linear_int8_few(m, strip, x, rows, start, out + strip * kStrip, out_stride);
  IntegerTile t{m.codes + strip * m.strip_bytes,
                x,
                start,
                0,
                out + strip * kStrip,
                out_stride,
                0,
                m.quad_bias,
                nullptr,
                0,
                panel,
                panel + kSteps * kStrip};
  const bool nibbles = m.codes_type == Codes::int4;
  const int most = kSteps * m.quad_step;
  for (int k = 0, group = 0; k < m.columns; k += most) {
    t.columns = m.columns - k < most ? m.columns - k : most;
    expand_numbers(m, strip, k, k + t.columns, group, panel, rows <= 3 ? t.codes : nullptr,
                   m.quad_step / (nibbles ? 8 : 4) * kQuadRow);
    nibbles ? multiply_columns<true>(m, t, rows) : multiply_columns<false>(m, t, rows);
    t.codes += most / (nibbles ? 8 : 4) * kQuadRow;
    t.x.codes += most;
    t.x.scales += most / kRun;
    t.x.sums += most / kSumRun;
    t.start = t.out;
    t.start_stride = out_stride;
  }
}

}  // namespace coldpress::COLDPRESS_ISA
