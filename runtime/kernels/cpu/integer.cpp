// Rows of int8 times one strip of a matrix in quads: bytes are multiplied and summed in int32, and
// each run of columns that shares its scales joins the float32 sum by one multiply-add.
//
// Integer sums are exact and runs are added in order, so a row's bits depend on the row alone:
// not on the tile it fell into, nor on which instruction set with fused multiply-adds runs it.
#include "groups.hpp"
#include "simd_integer.hpp"

namespace coldpress::COLDPRESS_ISA {

constexpr int kStripVecs = kStrip / kLanes;
#if defined(__AVX512F__)
constexpr int kVecs = 4;  // of channels, in one tile
constexpr int kRows = 6;
#else
constexpr int kVecs = 2;
constexpr int kRows = 4;
#endif
constexpr std::size_t kQuadRow = static_cast<std::size_t>(kStrip) * 4;
// How far ahead a stream of weights is asked for, when each is used once or twice: the processor's
// own guesses end with each page of memory.
constexpr std::size_t kAhead = 16 * kQuadRow;

// Where the tile's rows and channels begin; numbers: index of the first channel's numbers of group 0.
struct IntegerTile {
  const std::uint8_t* codes;
  std::size_t numbers;
  RoundedRows x;
  const float* start;  // what the sums begin with
  float* out;
  std::size_t out_stride;
};

enum class Shift : std::uint8_t { none, zero_point, minimum };

// A loop whose every turn is code of its own, so that arrays of sums become registers.
template <int i>
struct Index {
  constexpr operator int() const { return i; }
};
template <int n, int i = 0, class F>
inline __attribute__((always_inline)) void unroll(F&& f) {
  if constexpr (i < n) {
    f(Index<i>{});
    unroll<n, i + 1>(f);
  }
}
#define COLDPRESS_INLINE __attribute__((always_inline))

// Codes are stored as code + bias: what that adds to a sum of products is where the sum starts.
template <int rows, Shift shift>
inline COLDPRESS_INLINE void start_products(const MatrixView& m, std::size_t numbers,
                                            const std::int32_t (&sums)[rows],
                                            Integers (&products)[rows][kVecs]) {
  unroll<kVecs>([&](auto v) COLDPRESS_INLINE {
    Integers zero = splat_integer(m.quad_bias);
    if constexpr (shift == Shift::zero_point)
      zero = add_integers(zero, load_integers(m.zero_points + numbers + v * kLanes));
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      products[r][v] = shift == Shift::zero_point ? mul_integers(zero, splat_integer(-sums[r]))
                                                  : splat_integer(-m.quad_bias * sums[r]);
    });
  });
}

enum class Half : std::uint8_t { low, high, whole };

// Four columns of every row times the four that the bytes at `codes`, or a half of each, hold.
template <int rows, Half half>
inline COLDPRESS_INLINE void add_products(const std::uint8_t* codes, const std::int8_t* x,
                                          std::size_t x_stride,
                                          Integers (&products)[rows][kVecs]) {
  Integers quads[kVecs];
  unroll<kVecs>([&](auto v) COLDPRESS_INLINE {
    const Integers both = load_quads(codes + v * kLanes * 4);
    quads[v] = half == Half::low    ? low_nibbles(both)
               : half == Half::high ? high_nibbles(both)
                                    : both;
  });
  unroll<rows>([&](auto r) COLDPRESS_INLINE {
    const Integers four = splat_quad(x + r * x_stride);
    unroll<kVecs>([&](auto v) COLDPRESS_INLINE {
      products[r][v] = half == Half::whole ? dot_bytes(products[r][v], quads[v], four)
                                           : dot_nibbles(products[r][v], quads[v], four);
    });
  });
}

inline std::int32_t sum_of_codes(const std::int32_t* sums, int step) {
  return step == kRun ? sums[0] + sums[1] : sums[0];
}

template <bool nibbles, int rows, Shift shift>
void multiply_tile(const MatrixView& m, const IntegerTile& t) {
  constexpr bool kKeep = rows <= 2;  // more sums would push the products out of the registers
  Vec totals[kKeep ? rows : 1][kVecs];
  const int step = m.quad_step;
  const std::size_t x_stride = t.x.stride;
  const std::size_t out_stride = t.out_stride;
  const float* const start = t.start;
  float* const out = t.out;
  const std::uint8_t* codes = t.codes;
  for (int k = 0, group = 0; k < m.columns; k += step) {
    while (m.group_starts[group + 1] <= k) ++group;
    const std::size_t numbers = t.numbers + static_cast<std::size_t>(group) * kStrip;
    GroupNumbers weights[kVecs];
    unroll<kVecs>([&](auto v) COLDPRESS_INLINE {
      weights[v] = group_numbers(m, numbers + v * kLanes);
    });
    std::int32_t sums[rows];
    for (int r = 0; r < rows; ++r)
      sums[r] = sum_of_codes(t.x.sums + r * (x_stride / kSumRun) + k / kSumRun, step);
    Integers products[rows][kVecs];
    start_products<rows, shift>(m, numbers, sums, products);
    const std::int8_t* x = t.x.codes + k;
    for (const std::int8_t* end = x + step; x < end; x += nibbles ? 8 : 4, codes += kQuadRow) {
      if constexpr (kKeep) prefetch(codes + kAhead, kVecs * kLanes * 4);
      if constexpr (nibbles) {
        add_products<rows, Half::low>(codes, x, x_stride, products);
        add_products<rows, Half::high>(codes, x + 4, x_stride, products);
      } else {
        add_products<rows, Half::whole>(codes, x, x_stride, products);
      }
    }
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      unroll<kVecs>([&](auto v) COLDPRESS_INLINE { part_from_loop(products[r][v]); });
    });
    const float* scales = t.x.scales + k / kRun;
    const float* from = k == 0 ? start : out;
    const std::size_t from_stride = k == 0 ? 0 : out_stride;
    unroll<kVecs>([&](auto v) COLDPRESS_INLINE {
      unroll<rows>([&](auto r) COLDPRESS_INLINE {
        const float x_scale = scales[r * (x_stride / kRun)];
        Vec total;
        if constexpr (kKeep) {
          total = k == 0 ? load(start + v * kLanes) : totals[r][v];
        } else {
          total = load(from + r * from_stride + v * kLanes);
        }
        total = fma(to_floats(products[r][v]), mul(weights[v].scale, splat(x_scale)), total);
        if constexpr (shift == Shift::minimum)
          total = fma(weights[v].shift, splat(x_scale * static_cast<float>(sums[r])), total);
        if constexpr (kKeep) {
          totals[r][v] = total;
        } else {
          store(out + r * out_stride + v * kLanes, total);
        }
      });
    });
  }
  if constexpr (kKeep) {
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      unroll<kVecs>([&](auto v) COLDPRESS_INLINE {
        store(out + r * out_stride + v * kLanes, totals[r][v]);
      });
    });
  }
}

template <int rows, Shift shift>
inline void multiply_tile(const MatrixView& m, const IntegerTile& t) {
  if (m.codes_type == Codes::int4) return multiply_tile<true, rows, shift>(m, t);
  multiply_tile<false, rows, shift>(m, t);
}

template <int rows>
inline void multiply_tiles(const MatrixView& m, IntegerTile t) {
  for (int v = 0; v < kStripVecs; v += kVecs) {
    if (m.zero_points != nullptr) {
      multiply_tile<rows, Shift::zero_point>(m, t);
    } else if (m.minimums != nullptr) {
      multiply_tile<rows, Shift::minimum>(m, t);
    } else {
      multiply_tile<rows, Shift::none>(m, t);
    }
    t.codes += kVecs * kLanes * 4;
    t.numbers += kVecs * kLanes;
    t.start += kVecs * kLanes;
    t.out += kVecs * kLanes;
  }
}

void linear_int8(const MatrixView& m, int strip, const RoundedRows& x, int rows, const float* bias,
                 float* out, std::size_t out_stride) {
  static constexpr float kZeros[kStrip] = {};
  IntegerTile t{m.codes + strip * m.strip_bytes,
                static_cast<std::size_t>(strip) * m.groups * kStrip,
                x,
                bias != nullptr ? bias + strip * kStrip : kZeros,
                out + strip * kStrip,
                out_stride};
  for (; rows >= kRows; rows -= kRows) {
    multiply_tiles<kRows>(m, t);
    t.x = t.x.from(kRows);
    t.out += kRows * out_stride;
  }
  switch (rows) {
    case 5: return multiply_tiles<5>(m, t);
    case 4: return multiply_tiles<4>(m, t);
    case 3: return multiply_tiles<3>(m, t);
    case 2: return multiply_tiles<2>(m, t);
    case 1: return multiply_tiles<1>(m, t);
    default: return;
  }
}

}  // namespace coldpress::COLDPRESS_ISA
