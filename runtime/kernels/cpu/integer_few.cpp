#include "integer_few.hpp"

#include "integer_products.hpp"

namespace coldpress::COLDPRESS_ISA {

// Codes are asked for this far ahead, as evenly as they are read.
constexpr std::size_t kAhead = 16 * kQuadRow;

// Scales and what goes with them are read where they lie: writing them out for other rows to share
// takes longer than both products.
template <bool nibbles, Shift shift, int step, int rows>
void multiply_few(const MatrixView& m, const RoundedRows& from, const std::uint8_t* codes,
                  std::size_t numbers, const float* start, float* out, std::size_t out_stride) {
  constexpr int vecs = vecs_of(rows);
  Vec totals[rows][vecs];
  unroll<rows>([&](auto r) COLDPRESS_INLINE {
    unroll<vecs>([&](auto v) COLDPRESS_INLINE { totals[r][v] = load(start + v * kLanes); });
  });
  Stream stream{codes, codes + kAhead, kQuadRow};
  const std::int8_t* x = from.codes;
  for (int k = 0, group = 0; k < m.columns; k += step, x += step) {
    while (m.group_starts[group + 1] <= k) ++group;
    GroupNumbers found[vecs];
    unroll<vecs>([&](auto v) COLDPRESS_INLINE {
      found[v] = group_numbers(m, numbers + static_cast<std::size_t>(group) * kStrip + v * kLanes);
    });
    std::int32_t sums[rows];
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      sums[r] = sum_of_codes<step>(from.sums + r * (from.stride / kSumRun) + k / kSumRun);
    });
    Integers products[rows][vecs];
    const auto zero_points = [&](auto v) COLDPRESS_INLINE { return found[v].shift; };
    start_products<rows, vecs, shift>(m.quad_bias, zero_points, sums, products);
    add_step<nibbles, step, Fetch::soon>(stream, x, from.stride, products);
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      const float x_scale = from.scales[r * (from.stride / kRun) + k / kRun];
      unroll<vecs>([&](auto v) COLDPRESS_INLINE {
        const Vec scale = mul(found[v].scale, splat(x_scale));
        totals[r][v] = fma(to_floats(products[r][v]), scale, totals[r][v]);
        if constexpr (shift == Shift::minimum)
          totals[r][v] =
              fma(found[v].shift, splat(x_scale * static_cast<float>(sums[r])), totals[r][v]);
      });
    });
  }
  unroll<rows>([&](auto r) COLDPRESS_INLINE {
    unroll<vecs>([&](auto v) COLDPRESS_INLINE {
      store(out + r * out_stride + v * kLanes, totals[r][v]);
    });
  });
}

template <bool nibbles, Shift shift, int step>
void multiply_strip(const MatrixView& m, int strip, const RoundedRows& x, int rows,
                    const float* start, float* out, std::size_t out_stride) {
  static_assert(kFewRows == 2 && vecs_of(1) == vecs_of(2));
  constexpr auto kMultiply = multiply_few<nibbles, shift, step, 1>;
  constexpr auto kMultiplyBoth = multiply_few<nibbles, shift, step, 2>;
  const std::uint8_t* codes = m.codes + strip * m.strip_bytes;
  const std::size_t numbers = static_cast<std::size_t>(strip) * m.groups * kStrip;
  for (int channel = 0; channel < kStrip; channel += vecs_of(1) * kLanes)
    (rows == 1 ? kMultiply : kMultiplyBoth)(m, x, codes + channel * 4, numbers + channel,
                                            start + channel, out + channel, out_stride);
}

template <bool nibbles, int step>
constexpr auto strip_product(const MatrixView& m) {
  return m.zero_points != nullptr ? multiply_strip<nibbles, Shift::zero_point, step>
         : m.minimums != nullptr  ? multiply_strip<nibbles, Shift::minimum, step>
                                  : multiply_strip<nibbles, Shift::none, step>;
}

template <bool nibbles>
constexpr auto strip_product(const MatrixView& m) {
  return m.quad_step == kRun ? strip_product<nibbles, kRun>(m)
                             : strip_product<nibbles, kSumRun>(m);
}

void linear_int8_few(const MatrixView& m, int strip, const RoundedRows& x, int rows,
                     const float* start, float* out, std::size_t out_stride) {
  const auto multiply = m.codes_type == Codes::int4 ? strip_product<true>(m) : strip_product<false>(m);
  multiply(m, strip, x, rows, start, out, out_stride);
}

}  // namespace coldpress::COLDPRESS_ISA
