// Rows of int8 times one strip of a matrix in quads: what tiles of any number of rows are made of.
//
// Integer sums are exact and runs are added in order, so a row's bits depend on the row alone:
// not on the tile it fell into, nor on which instruction set with fused multiply-adds runs it.
#pragma once

#include "groups.hpp"
#include "simd_integer.hpp"

namespace coldpress::COLDPRESS_ISA {

constexpr int kStripVecs = kStrip / kLanes;
// Products and sums of a tile all stay in registers: storing sums after every run costs as much as a
// quarter of its products.
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
constexpr int vecs_of(int rows) { return rows <= 3 ? 4 : 2; }
#else
constexpr int kTileRows = 4;
constexpr int vecs_of(int) { return 2; }
#endif
constexpr std::size_t kQuadRow = static_cast<std::size_t>(kStrip) * 4;

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
// zero_points(v): those of vector v, if there are any.
template <int rows, int vecs, Shift shift, class ZeroPoints>
inline COLDPRESS_INLINE void start_products(int bias, ZeroPoints&& zero_points,
                                            const std::int32_t (&sums)[rows],
                                            Integers (&products)[rows][vecs]) {
  if constexpr (shift == Shift::zero_point) {
    unroll<vecs>([&](auto v) COLDPRESS_INLINE {
      const Integers zero = add_integers(to_integers(zero_points(v)), splat_integer(bias));
      unroll<rows>([&](auto r) COLDPRESS_INLINE {
        products[r][v] = mul_integers(zero, splat_integer(-sums[r]));
      });
    });
  } else {
    unroll<rows>([&](auto r) COLDPRESS_INLINE {
      const Integers first = splat_integer(-bias * sums[r]);
      unroll<vecs>([&](auto v) COLDPRESS_INLINE { products[r][v] = first; });
    });
  }
}

enum class Half : std::uint8_t { low, high, whole };

// Four columns of every row times the four that the bytes at `codes`, or a half of each, hold.
template <Half half, int rows, int vecs>
inline COLDPRESS_INLINE void add_products(const std::uint8_t* codes, const std::int8_t* x,
                                          std::size_t x_stride, Integers (&products)[rows][vecs]) {
  Integers quads[vecs];
  unroll<vecs>([&](auto v) COLDPRESS_INLINE {
    const Integers both = load_quads(codes + v * kLanes * 4);
    quads[v] = half == Half::low    ? low_nibbles(both)
               : half == Half::high ? high_nibbles(both)
                                    : both;
  });
  unroll<rows>([&](auto r) COLDPRESS_INLINE {
    const Integers four = splat_quad(x + r * x_stride);
    unroll<vecs>([&](auto v) COLDPRESS_INLINE {
      products[r][v] = half == Half::whole ? dot_bytes(products[r][v], quads[v], four)
                                           : dot_nibbles(products[r][v], quads[v], four);
    });
  });
}

// What memory is asked for: what the tile will read at once, or the next strip.
enum class Fetch : std::uint8_t { own, next };

struct Stream {
  const std::uint8_t* codes;
  const std::uint8_t* fetched;
  std::size_t fetch_step;
};

// All of one step's columns; the stream is moved on behind them.
template <bool nibbles, int step, Fetch fetch, int rows, int vecs>
inline COLDPRESS_INLINE void add_step(Stream& stream, const std::int8_t* x, std::size_t x_stride,
                                      Integers (&products)[rows][vecs]) {
  for (int k = 0; k < step; k += nibbles ? 8 : 4) {
    const std::uint8_t* codes = stream.codes;
    stream.codes += kQuadRow;
    if constexpr (fetch == Fetch::own) request_near(stream.fetched, vecs * kLanes * 4);
    if constexpr (fetch == Fetch::next) request(stream.fetched);
    stream.fetched += stream.fetch_step;
    if constexpr (nibbles) {
      add_products<Half::low>(codes, x + k, x_stride, products);
      add_products<Half::high>(codes, x + k + 4, x_stride, products);
    } else {
      add_products<Half::whole>(codes, x + k, x_stride, products);
    }
  }
  unroll<rows>([&](auto r) COLDPRESS_INLINE {
    unroll<vecs>([&](auto v) COLDPRESS_INLINE { part_from_loop(products[r][v]); });
  });
}

template <int step>
inline std::int32_t sum_of_codes(const std::int32_t* sums) {
  return step == kRun ? sums[0] + sums[1] : sums[0];
}

}  // namespace coldpress::COLDPRESS_ISA
