// Rows of activations times one strip of a packed matrix.
//
// Codes are expanded to float32 a panel of columns at a time and every output adds its products in column
// order with one multiply-add each. That order, and so the bits, is the same for one row and for
// many, in whichever tile a row happens to fall.
#include "groups.hpp"

namespace coldpress::COLDPRESS_ISA {

constexpr int kStripVecs = kStrip / kLanes;
constexpr int kTileRows = 6;

enum class Shift : std::uint8_t { none, zero_point, minimum };

template <Shift shift>
inline Vec weigh(Vec code, const GroupNumbers& group) {
  if constexpr (shift == Shift::zero_point) return mul(sub(code, group.shift), group.scale);
  if constexpr (shift == Shift::minimum) return add(mul(code, group.scale), group.shift);
  return mul(code, group.scale);
}

// Columns [from, to), all of one group, of one vector of channels; panel points at column `from`.
template <Shift shift>
inline void expand_int8(const std::int8_t* codes, int count, GroupNumbers group, float* panel) {
  for (int k = 0; k < count; ++k)
    store(panel + k * kStrip, weigh<shift>(load_int8(codes + k * kStrip), group));
}

inline void expand_e4m3(const std::uint8_t* codes, int count, Vec scale, float* panel) {
  for (int k = 0; k < count; ++k)
    store(panel + k * kStrip, mul(load_e4m3(codes + k * kStrip), scale));
}

template <Shift shift, class Table>
inline void expand_nibbles(const std::uint8_t* codes, int from, int to, Table table,
                           GroupNumbers group, float* panel) {
  Vec low;
  Vec high;
  int left = to - from;
  codes += static_cast<std::size_t>(from / 2) * kStrip;
  if (from % 2 == 1) {
    load_nibbles(codes, table, low, high);
    store(panel, weigh<shift>(high, group));
    codes += kStrip;
    panel += kStrip;
    --left;
  }
  for (; left > 0; left -= 2, codes += kStrip, panel += 2 * kStrip) {
    load_nibbles(codes, table, low, high);
    store(panel, weigh<shift>(low, group));
    // A group that ends on an even column: the next group, or nobody, overwrites this one.
    store(panel + kStrip, weigh<shift>(high, group));
  }
}

template <Shift shift>
inline void expand_group(const MatrixView& m, const std::uint8_t* codes, std::size_t numbers,
                         int from, int to, float* panel) {
  const NibbleTable table = nibble_table(m.bias);
  for (int v = 0; v < kStripVecs; ++v) {
    const GroupNumbers group = group_numbers(m, numbers + v * kLanes);
    if (m.codes_type == Codes::int4) {
      expand_nibbles<shift>(codes + v * kLanes, from, to, table, group, panel + v * kLanes);
    } else {
      const auto* bytes = reinterpret_cast<const std::int8_t*>(codes) + v * kLanes;
      expand_int8<shift>(bytes + static_cast<std::size_t>(from) * kStrip, to - from, group,
                         panel + v * kLanes);
    }
  }
}

// The same for codebooks, which have scales alone.
inline void expand_codebook(const MatrixView& m, const std::uint8_t* codes, std::size_t numbers,
                            int from, int to, float* panel) {
  for (int v = 0; v < kStripVecs; ++v, codes += kLanes, panel += kLanes) {
    GroupNumbers group = group_numbers(m, numbers + v * kLanes);
    if (m.divisor != 1.0F) group.scale = div(group.scale, splat(m.divisor));
    if (m.codes_type == Codes::table) {
      expand_nibbles<Shift::none>(codes, from, to, codebook_table(m.table), group, panel);
    } else {
      const Vec scale = mul(group.scale, splat(256.0F));
      expand_e4m3(codes + static_cast<std::size_t>(from) * kStrip, to - from, scale, panel);
    }
  }
}

// `group` is the group of column `from`; it is moved on to that of column `to`.
void expand_codes(const MatrixView& m, int strip, int from, int to, int& group, float* panel) {
  const std::uint8_t* codes = m.codes + strip * m.strip_bytes;
  for (int k = from; k < to;) {
    while (m.group_starts[group + 1] <= k) ++group;
    const int end = m.group_starts[group + 1] < to ? m.group_starts[group + 1] : to;
    const std::size_t numbers = (static_cast<std::size_t>(strip) * m.groups + group) * kStrip;
    float* at = panel + (k - from) * kStrip;
    if (m.codes_type == Codes::table || m.codes_type == Codes::e4m3) {
      expand_codebook(m, codes, numbers, k, end, at);
    } else if (m.zero_points != nullptr) {
      expand_group<Shift::zero_point>(m, codes, numbers, k, end, at);
    } else if (m.minimums != nullptr) {
      expand_group<Shift::minimum>(m, codes, numbers, k, end, at);
    } else {
      expand_group<Shift::none>(m, codes, numbers, k, end, at);
    }
    k = end;
  }
}

template <class Weight>
struct Tile {
  const Weight* weights;  // [columns][kStrip]
  const float* x;
  std::size_t x_stride;
  float* out;
  std::size_t out_stride;
  int columns;
};

// start: what the sums begin with, [vecs * kLanes]; nullptr to go on from what `out` holds.
template <int rows, int vecs, class Weight>
inline void multiply(const Tile<Weight>& t, const float* start) {
  Vec sums[rows][vecs];
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v)
      sums[r][v] = load((start != nullptr ? start : t.out + r * t.out_stride) + v * kLanes);
  for (int k = 0; k < t.columns; ++k) {
    Vec w[vecs];
    for (int v = 0; v < vecs; ++v) w[v] = load_floats(t.weights + k * kStrip + v * kLanes);
    for (int r = 0; r < rows; ++r) {
      const Vec x = splat(t.x[r * t.x_stride + k]);
      for (int v = 0; v < vecs; ++v) sums[r][v] = fma(w[v], x, sums[r][v]);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vecs; ++v) store(t.out + r * t.out_stride + v * kLanes, sums[r][v]);
}

template <int rows, class Weight>
inline void multiply_strip(Tile<Weight> tile, const float* start) {
  // One row alone has few sums in flight: give it a wide tile where the registers allow.
  constexpr int vecs = rows == 1 && kStripVecs >= 8 ? 8 : kTileVecs;
  for (int v = 0; v < kStripVecs; v += vecs) {
    multiply<rows, vecs>(tile, start);
    tile.weights += vecs * kLanes;
    tile.out += vecs * kLanes;
    if (start != nullptr) start += vecs * kLanes;
  }
}

template <class Weight>
inline void multiply_rows(Tile<Weight> tile, int rows, const float* start) {
  while (rows >= kTileRows) {
    multiply_strip<kTileRows>(tile, start);
    tile.x += kTileRows * tile.x_stride;
    tile.out += kTileRows * tile.out_stride;
    rows -= kTileRows;
  }
  switch (rows) {
    case 5: return multiply_strip<5>(tile, start);
    case 4: return multiply_strip<4>(tile, start);
    case 3: return multiply_strip<3>(tile, start);
    case 2: return multiply_strip<2>(tile, start);
    case 1: return multiply_strip<1>(tile, start);
    default: return;
  }
}

// Numbers are expanded in the registers of every tile, beside its products: sooner than a panel is
// written and read again, however many tiles there are.
template <class Weight>
inline void multiply_directly(const MatrixView& m, int strip, const float* x, std::size_t x_stride,
                              int rows, const float* start, float* out, std::size_t out_stride) {
  const auto* weights = reinterpret_cast<const Weight*>(m.codes + strip * m.strip_bytes);
  multiply_rows<Weight>({weights, x, x_stride, out, out_stride, m.columns}, rows, start);
}

void linear(const MatrixView& m, int strip, const float* x, std::size_t x_stride, int rows,
            const float* bias, float* out, std::size_t out_stride, float* panel) {
  static constexpr float kZeros[kStrip] = {};
  const float* start = bias != nullptr ? bias + strip * kStrip : kZeros;
  out += strip * kStrip;
  if (m.codes_type == Codes::number) {
    const auto directly = m.number == Number::float16    ? multiply_directly<Float16>
                          : m.number == Number::bfloat16 ? multiply_directly<Bfloat16>
                                                         : multiply_directly<float>;
    return directly(m, strip, x, x_stride, rows, start, out, out_stride);
  }
  int group = 0;
  for (int k = 0; k < m.columns; k += kPanel) {
    const int end = k + kPanel < m.columns ? k + kPanel : m.columns;
    expand_codes(m, strip, k, end, group, panel);
    multiply_rows<float>({panel, x + k, x_stride, out, out_stride, end - k}, rows,
                         k == 0 ? start : nullptr);
  }
}

}  // namespace coldpress::COLDPRESS_ISA
