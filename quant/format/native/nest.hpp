// Factors of nested scales: what a block can store of the scales that its groups want.
#pragma once

#include "fit.hpp"

namespace coldpress::blocks::COLDPRESS_ISA {

namespace {

enum class Mend { kNonzero, kFromOne, kAsIs };

COLDPRESS_INLINE Vec mended(Mend how, Vec nested) {
  if (how == Mend::kNonzero) return pick(nested == Vec{}, splat(1.0F), nested);
  return how == Mend::kFromOne ? larger(nested, splat(1.0F)) : nested;
}

COLDPRESS_INLINE Vec total(int count, const Vec* values) {
  Vec sum{};
  for (int g = 0; g < count; ++g) sum += values[g];
  return sum;
}

// The groups of kLanes blocks and what is stored for them; error: of each group.
template <bool kMinimum, bool kBook>
struct Nest {
  const Kind* kind;
  const Effort* effort;
  Group<kMinimum, kBook>* groups;  // [per_block]
  Vec d{}, m{};
  Vec sub[kMaxGroups]{}, least[kMaxGroups]{}, error[kMaxGroups]{};

  int count() const { return kind->per_block; }

  Pair pair(int g, Vec factor, Vec depth) const {
    if constexpr (!kMinimum) return {factor * sub[g], Vec{}};
    return {factor * sub[g], -(depth * least[g])};
  }

  Vec nested(Vec wanted, Vec factor, float lowest) const {
    return snap(wanted / factor, splat(lowest), splat(kind->nested_highest));
  }

  // The factor and whole numbers of least sum(weight * (wanted - factor * nested)**2).
  Vec start(const Vec* wanted, const Vec* weight, Mend how, Vec* best_nested) const {
    Vec most = wanted[0];
    for (int g = 1; g < count(); ++g) {
      most = pick(magnitude(wanted[g]) > magnitude(most), wanted[g], most);
    }
    Vec best = half(most), best_cost = splat(__builtin_inff());
    for (int g = 0; g < count(); ++g) best_nested[g] = splat(1.0F);
    for (int i = 0; i < effort->end_count; ++i) {
      Vec factor = half(most / splat(effort->ends[i]));
      for (int twice = 0; twice < 2; ++twice) {
        Vec whole[kMaxGroups], cost{}, norm{}, cross{};
        for (int g = 0; g < count(); ++g) {
          whole[g] = mended(how, nested(wanted[g], factor, kind->nested_lowest));
          const Vec off = wanted[g] - factor * whole[g];
          cost += weight[g] * (off * off);
          norm += weight[g] * whole[g] * whole[g];
          cross += weight[g] * wanted[g] * whole[g];
        }
        const Bits better = cost < best_cost;
        best_cost = pick(better, cost, best_cost);
        best = pick(better, factor, best);
        for (int g = 0; g < count(); ++g) {
          best_nested[g] = pick(better, whole[g], best_nested[g]);
        }
        const Vec fit = cross / pick(norm > Vec{}, norm, splat(1.0F));
        factor = pick(fit * factor > Vec{}, half(fit), factor);
      }
    }
    return best;
  }

  void begin(const Pair* wanted) {
    Vec scale[kMaxGroups]{}, weight[kMaxGroups]{}, mean[kMaxGroups]{};
    for (int g = 0; g < count(); ++g) {
      const Sums s = groups[g].sums(wanted[g]);
      scale[g] = wanted[g].scale;
      weight[g] = s.cc;
      if constexpr (kMinimum) {
        // The minimum makes up for most of what a scale misses: what is left is the variance.
        mean[g] = s.c / groups[g].w;
        weight[g] = larger(s.cc - s.c * mean[g], Vec{});
      }
    }
    d = start(scale, weight, kMinimum ? Mend::kFromOne : Mend::kNonzero, sub);
    if constexpr (kMinimum) {
      Vec depth[kMaxGroups]{};
      for (int g = 0; g < count(); ++g) {
        depth[g] = larger((d * sub[g] - scale[g]) * mean[g] - wanted[g].minimum, Vec{});
        weight[g] = groups[g].w;
      }
      m = start(depth, weight, Mend::kAsIs, least);
    }
    for (int g = 0; g < count(); ++g) error[g] = groups[g].error_at(pair(g, d, m));
  }

  // Each group's nested scale moved next to what its codes want, with codes chosen anew.
  void move(int g) {
    const Pair at = pair(g, d, m);
    const Sums s = groups[g].sums(at);
    const float lowest = kMinimum ? 1.0F : kind->nested_lowest;
    Vec wanted;
    if constexpr (kMinimum) {
      wanted = groups[g].best_affine(s, at, true).scale / d;
    } else {
      wanted = groups[g].best_scale(s, at.scale) / d;
    }
    const Vec low = floor_within(wanted, lowest, kind->nested_highest), old = sub[g];
    const Vec one = splat(1.0F);
    const Vec high = kMinimum ? low + one : -floor_within(-wanted, -kind->nested_highest, -lowest);
    const Vec candidates[] = {low, high, old, old - one, old + one};
    for (int i = 0; i < 5; ++i) {
      if (!kMinimum && i == 2) continue;
      Vec next = smaller(larger(candidates[i], splat(lowest)), splat(kind->nested_highest));
      Vec its_least{};
      if constexpr (kMinimum) {
        const Vec depth = (d * next * s.c - groups[g].sum_x) / groups[g].w;
        its_least = nested(depth, m, 0.0F);
      } else {
        next = mended(Mend::kNonzero, next);
      }
      const Vec its_error = groups[g].error_at({d * next, -(m * its_least)});
      const Bits better = its_error < error[g];
      sub[g] = pick(better, next, sub[g]);
      least[g] = pick(better, its_least, least[g]);
      error[g] = pick(better, its_error, error[g]);
    }
  }

  // The factors fitted to all codes of their block.
  void refit() {
    Vec a{}, b{}, c{}, p{}, q{};
    for (int g = 0; g < count(); ++g) {
      const Sums s = groups[g].sums(pair(g, d, m));
      a += sub[g] * sub[g] * s.cc;
      p += sub[g] * s.xc;
      if constexpr (kMinimum) {
        b += sub[g] * least[g] * s.c;
        c += least[g] * least[g] * groups[g].w;
        q += least[g] * groups[g].sum_x;
      }
    }
    Vec next_d, next_m{};
    if constexpr (kMinimum) {
      q = -q;
      const Vec determinant = a * c - b * b;
      Bits usable = determinant > splat(1e-6F) * a * c;
      const Vec divisor = pick(usable, determinant, splat(1.0F));
      const Vec fit_d = (p * c + b * q) / divisor, fit_m = (a * q + b * p) / divisor;
      usable &= (fit_d > Vec{}) & (fit_m > Vec{});
      next_d = pick(usable, half(fit_d), d);
      next_m = pick(usable, half(fit_m), m);
    } else {
      const Vec fit = p / pick(a > Vec{}, a, splat(1.0F));
      next_d = pick(fit * d > Vec{}, half(fit), d);
    }
    Vec its_error[kMaxGroups];
    for (int g = 0; g < count(); ++g) {
      its_error[g] = groups[g].error_at(pair(g, next_d, next_m));
    }
    const Bits better = total(count(), its_error) < total(count(), error);
    d = pick(better, next_d, d);
    m = pick(better, next_m, m);
    for (int g = 0; g < count(); ++g) error[g] = pick(better, its_error[g], error[g]);
  }

  void solve(const Pair* wanted) {
    begin(wanted);
    for (int round = 0; round < effort->nest_rounds; ++round) {
      for (int g = 0; g < count(); ++g) move(g);
      refit();
    }
  }
};

}  // namespace

}  // namespace coldpress::blocks::COLDPRESS_ISA
