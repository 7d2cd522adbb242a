// Scales by weighted error: shrunken ranges, then least squares. Each lane holds one group.
#include "../format/native/vector.hpp"
#include "kernels.hpp"

namespace coldpress::rounding::COLDPRESS_ISA {

namespace {

using namespace coldpress::vectors::COLDPRESS_ISA;

struct Grid {
  Vec scale;
  Vec zero;
};

// kLanes groups, [size, lanes]; lanes beyond the last group hold zeros.
struct Groups {
  const float* weight;
  const float* importance;
  int size;
  Vec low;   // smallest weight
  Vec high;  // largest weight
};

// As it will be read back: rounded to nearest, ties to even; a zero becomes 1.
COLDPRESS_INLINE Vec stored(Vec scale, const ScaleType& type) {
  const Vec size = larger(smaller(larger(scale, -scale), splat(type.largest)), splat(type.smallest));
  Bits bits;
  std::memcpy(&bits, &size, sizeof bits);
  if (const int dropped = 23 - type.kept; dropped > 0) {
    const std::int32_t unit = std::int32_t{1} << dropped;
    bits += (unit / 2 - 1) + ((bits >> dropped) & 1);
    bits &= ~(unit - 1);
  }
  Vec rounded;
  std::memcpy(&rounded, &bits, sizeof rounded);
  return scale == Vec{} ? splat(1.0F) : scale < Vec{} ? -rounded : rounded;
}

COLDPRESS_INLINE Vec clamped_zero(const Search& s, Vec zero) {
  return smaller(larger(zero, splat(s.to.lowest + s.lowest_zero)), splat(s.to.highest));
}

// The grid that spans `shrink` of the range.
COLDPRESS_INLINE Grid spanning(const Search& s, const Groups& g, double shrink) {
  if (s.symmetric) {
    const Vec largest = larger(g.high, -g.low);
    return {stored(largest * splat(static_cast<float>(shrink / s.to.highest)), s.stored), Vec{}};
  }
  const double steps = static_cast<double>(s.to.highest) - s.to.lowest;
  Vec low = smaller(g.low, Vec{});
  const Vec high = larger(g.high, Vec{});
  if (s.lowest_zero != 0.0F) {
    low = smaller(low, high * splat(static_cast<float>(-s.lowest_zero / (steps - s.lowest_zero))));
  }
  const Vec scale = stored((high - low) * splat(static_cast<float>(shrink / steps)), s.stored);
  const Vec below = splat(static_cast<float>(shrink)) * low / scale;
  return {scale, clamped_zero(s, nearest(clamped_zero(s, splat(s.to.lowest) - below)))};
}

COLDPRESS_INLINE Vec level_of(const Search& s, const Grid& grid, Vec weight) {
  return snap(weight / grid.scale + grid.zero, splat(s.to.lowest), splat(s.to.highest));
}

COLDPRESS_INLINE Vec error_of(const Search& s, const Groups& g, const Grid& grid) {
  Vec sum{};
  for (int k = 0; k < g.size; ++k) {
    const Vec weight = load(g.weight + k * kLanes);
    const Vec off = (level_of(s, grid, weight) - grid.zero) * grid.scale - weight;
    sum += off * off * load(g.importance + k * kLanes);
  }
  return sum;
}

// The best scale for the codes that `grid` gives; one that would not be positive is not taken.
COLDPRESS_INLINE Grid refitted(const Search& s, const Groups& g, const Grid& grid) {
  Vec norm{}, product{};
  for (int k = 0; k < g.size; ++k) {
    const Vec weight = load(g.weight + k * kLanes);
    const Vec code = level_of(s, grid, weight) - grid.zero;
    const Vec weighted = code * load(g.importance + k * kLanes);
    norm += weighted * code;
    product += weighted * weight;
  }
  const Vec scale = product / (norm > Vec{} ? norm : splat(1.0F));
  return {stored(scale > Vec{} ? scale : grid.scale, s.stored), grid.zero};
}

struct Best {
  Grid grid;
  Vec error;
};

// Only a strict improvement replaces a grid, so that ties keep the largest scale.
COLDPRESS_INLINE void keep_better(const Search& s, const Groups& g, const Grid& grid, Best& best) {
  const Vec error = error_of(s, g, grid);
  const Bits better = error < best.error;
  best.grid.scale = better ? grid.scale : best.grid.scale;
  best.grid.zero = better ? grid.zero : best.grid.zero;
  best.error = better ? error : best.error;
}

Best best_of(const Search& s, const Groups& g) {
  Best best{spanning(s, g, s.shrinks[0]), Vec{}};
  best.error = error_of(s, g, best.grid);
  for (int step = 1; step < s.steps; ++step) {
    keep_better(s, g, spanning(s, g, s.shrinks[step]), best);
  }
  for (int round = 0; round < s.refits; ++round) {
    keep_better(s, g, refitted(s, g, best.grid), best);
    if (s.symmetric) continue;
    for (float shift = -1.0F; shift <= 1.0F; shift += 2.0F) {
      const Grid moved{best.grid.scale, clamped_zero(s, best.grid.zero + splat(shift))};
      keep_better(s, g, refitted(s, g, moved), best);
    }
  }
  return best;
}

// Group `first` and those that follow it, in lanes; `sign` times the weights.
Groups gathered(const Search& s, std::size_t first, float sign, float* buffer) {
  const std::size_t total = s.rows * s.groups;
  float* importance = buffer + kLanes * s.size;
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    const std::size_t group = first + lane;
    const bool real = group < total;
    const float* weight = s.weight + group * s.size;
    const float* h = s.importance + group % s.groups * s.size;
    for (int k = 0; k < s.size; ++k) {
      buffer[k * kLanes + lane] = real ? sign * weight[k] : 0.0F;
      importance[k * kLanes + lane] = real ? h[k] : 0.0F;
    }
  }
  Groups g{buffer, importance, s.size, load(buffer), load(buffer)};
  for (int k = 1; k < s.size; ++k) {
    const Vec weight = load(buffer + k * kLanes);
    g.low = smaller(g.low, weight);
    g.high = larger(g.high, weight);
  }
  return g;
}

}  // namespace

void search(const Search& s, float* buffer, float* scale, float* zero) {
  const std::size_t total = s.rows * s.groups;
  for (std::size_t first = 0; first < total; first += kLanes) {
    Best best = best_of(s, gathered(s, first, 1.0F, buffer));
    if (s.mirrored) {
      const Best other = best_of(s, gathered(s, first, -1.0F, buffer));
      best.grid.scale = other.error < best.error ? -other.grid.scale : best.grid.scale;
    }
    store_part(scale + first, total - first, best.grid.scale);
    store_part(zero + first, total - first, best.grid.zero);
  }
}

}  // namespace coldpress::rounding::COLDPRESS_ISA
