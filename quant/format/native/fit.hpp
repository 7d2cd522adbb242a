// Scales of single groups by least weighted error. Each lane holds a group of another block.
#pragma once

#include "blocks.hpp"
#include "vector.hpp"

namespace coldpress::blocks::COLDPRESS_ISA {

namespace {

using namespace coldpress::vectors::COLDPRESS_ISA;

constexpr float kTiny = 1e-30F;

COLDPRESS_INLINE Vec magnitude(Vec a) { return larger(a, -a); }
COLDPRESS_INLINE Vec pick(Bits which, Vec a, Vec b) { return which ? a : b; }

// To float16's numbers and back: the same sign, never 0 or infinite, ties to even.
COLDPRESS_INLINE Vec half(Vec a) {
  const Vec size = smaller(larger(magnitude(a), splat(0x1p-24F)), splat(65504.0F));
  Bits bits;
  std::memcpy(&bits, &size, sizeof bits);
  bits += 0xfff + ((bits >> 13) & 1);
  bits &= ~0x1fff;
  Vec normal;
  std::memcpy(&normal, &bits, sizeof normal);
  const Vec small = (size + splat(0.75F)) - splat(0.75F);  // the last bit of 0.75 is 2**-24
  const Vec rounded = pick(size < splat(0x1p-14F), small, normal);
  Bits sign, number;
  std::memcpy(&sign, &a, sizeof sign);
  std::memcpy(&number, &rounded, sizeof number);
  number |= sign & static_cast<std::int32_t>(0x80000000U);
  Vec signed_number;
  std::memcpy(&signed_number, &number, sizeof signed_number);
  return signed_number;
}

// Whole numbers within bounds; what lies outside is clamped before, so that `nearest` is exact.
COLDPRESS_INLINE Vec floor_within(Vec a, float lowest, float highest) {
  const Vec near = smaller(larger(a, splat(lowest - 2.0F)), splat(highest + 2.0F));
  const Vec whole = nearest(near);
  return pick(whole > near, whole - splat(1.0F), whole);
}

// What the error of one choice of codes c is made of.
struct Sums {
  Vec cc;
  Vec c;
  Vec xc;
};

struct Pair {
  Vec scale;
  Vec minimum;
};

// Groups to be fitted, elements [size, lanes]; h is null where all weigh 1.
template <bool kMinimum, bool kBook>
struct Group {
  const Kind* kind;
  const float* x;
  const float* h;
  Vec w{}, sum_x{}, xx{};

  void prepare() {
    w = sum_x = xx = Vec{};
    for (int k = 0; k < kind->group; ++k) {
      const Vec value = load(x + k * kLanes);
      const Vec weight = h ? load(h + k * kLanes) : splat(1.0F);
      const Vec weighted = weight * value;
      w += weight;
      sum_x += weighted;
      xx += weighted * value;
    }
  }

  Vec level(Vec steps) const {
    if constexpr (!kBook) return snap(steps, splat(kind->lowest), splat(kind->highest));
    Vec found = splat(kind->levels[0]);
    for (int i = 1; i < kCodebook; ++i) {
      const float below = kind->levels[i - 1], above = kind->levels[i];
      found += pick(steps >= splat((below + above) / 2), splat(above - below), Vec{});
    }
    return found;
  }

  // Of the nearest codes on the grid of `at`.
  template <bool kWeighted>
  Sums sums_weighted(const Pair& at) const {
    const Vec inverse = splat(1.0F) / at.scale;
    const Vec shift = kMinimum ? at.minimum * inverse : Vec{};
    Sums s{Vec{}, Vec{}, Vec{}};
    for (int k = 0; k < kind->group; ++k) {
      const Vec value = load(x + k * kLanes);
      Vec steps = value * inverse;
      if constexpr (kMinimum) steps -= shift;
      const Vec code = level(steps);
      const Vec weighted = kWeighted ? load(h + k * kLanes) * code : code;
      if constexpr (kMinimum) s.c += weighted;
      s.xc += weighted * value;
      s.cc += weighted * code;
    }
    if constexpr (!kMinimum) s.c = w;
    return s;
  }

  Sums sums(const Pair& at) const { return h ? sums_weighted<true>(at) : sums_weighted<false>(at); }

  Vec error(const Sums& s, const Pair& at) const {
    const Vec two = splat(2.0F);
    Vec found = xx - at.scale * (two * s.xc - at.scale * s.cc);
    if constexpr (kMinimum) {
      found = found + at.minimum * (at.minimum * w - two * (sum_x - at.scale * s.c));
    }
    return found;
  }

  Vec error_at(const Pair& at) const { return error(sums(at), at); }

  Vec best_scale(const Sums& s, Vec otherwise) const {
    const Vec found = s.xc / larger(s.cc, splat(kTiny));
    return pick((s.cc > Vec{}) & (found != Vec{}), found, otherwise);
  }

  Pair best_affine(const Sums& s, const Pair& at, bool below_zero) const {
    const Vec determinant = w * s.cc - s.c * s.c;
    Bits usable = determinant > splat(1e-6F) * w * s.cc;
    const Vec divisor = pick(usable, determinant, splat(1.0F));
    Vec scale = (w * s.xc - sum_x * s.c) / divisor;
    Vec minimum = (sum_x * s.cc - s.c * s.xc) / divisor;
    if (below_zero) {
      const Bits above = minimum > Vec{};
      scale = pick(above, s.xc / larger(s.cc, splat(kTiny)), scale);
      minimum = pick(above, Vec{}, minimum);
    }
    usable &= scale > Vec{};
    return {pick(usable, scale, at.scale), pick(usable, minimum, at.minimum)};
  }

  // The best pair for the codes of `at`.
  Pair refitted(const Sums& s, const Pair& at) const {
    if constexpr (kMinimum) return best_affine(s, at, kind->nested);
    return {best_scale(s, at.scale), Vec{}};
  }
};

struct Best {
  Pair pair;
  Vec error;

  // Only a strict improvement replaces a pair.
  void keep(const Pair& other, Vec its_error) {
    const Bits better = its_error < error;
    pair.scale = pick(better, other.scale, pair.scale);
    pair.minimum = pick(better, other.minimum, pair.minimum);
    error = pick(better, its_error, error);
  }
};

template <bool kMinimum, bool kBook>
void keep_refitted(const Group<kMinimum, kBook>& group, const Pair& at, Best& best) {
  const Sums s = group.sums(at);
  const Pair found = group.refitted(s, at);
  best.keep(found, group.error(s, found));
}

// Where the tries begin: the smallest and largest element (0 among them where minimums are not
// above it), or the largest magnitude.
struct Range {
  Vec low;
  Vec width;
};

template <bool kMinimum, bool kBook>
Range range_of(const Group<kMinimum, kBook>& group) {
  Vec low = load(group.x), high = low;
  for (int k = 1; k < group.kind->group; ++k) {
    const Vec value = load(group.x + k * kLanes);
    low = smaller(low, value);
    high = larger(high, value);
  }
  if (!kMinimum) return {Vec{}, larger(larger(high, -low), splat(kTiny))};
  if (group.kind->nested) {
    low = smaller(low, Vec{});
    high = larger(high, Vec{});
  }
  return {low, larger(high - low, splat(kTiny))};
}

template <bool kMinimum>
Pair tried(const Range& range, const float* numbers) {
  if constexpr (!kMinimum) return {range.width / splat(numbers[0]), Vec{}};
  return {range.width * splat(numbers[0]), range.low + range.width * splat(numbers[1])};
}

template <bool kMinimum, bool kBook>
Pair fitted(const Group<kMinimum, kBook>& group, const Effort& effort, const Pair* known) {
  const Range range = range_of(group);
  Pair first = tried<kMinimum>(range, effort.tries);
  if constexpr (kMinimum) first = {range.width / splat(group.kind->highest), range.low};
  Best best{first, group.error_at(first)};
  if (known) best.keep(*known, group.error_at(*known));
  for (int i = 0; i < effort.count; ++i) {
    keep_refitted(group, tried<kMinimum>(range, effort.tries + 2 * i), best);
  }
  for (int round = 0; round < effort.rounds; ++round) {
    for (int i = 0; i < effort.nudge_count; ++i) {
      const Pair moved{best.pair.scale * splat(effort.nudges[i]), best.pair.minimum};
      keep_refitted(group, moved, best);
    }
  }
  return best.pair;
}

}  // namespace

}  // namespace coldpress::blocks::COLDPRESS_ISA
