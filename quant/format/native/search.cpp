// Scales and codes of kLanes blocks at a time.
#include "nest.hpp"

namespace coldpress::blocks::COLDPRESS_ISA {

namespace {

// What is stored for kLanes blocks, and the grid of each group that follows from it.
struct Stored {
  Vec d{}, m{};
  Vec sub[kMaxGroups]{}, least[kMaxGroups]{};
  Pair grid[kMaxGroups];
};

template <bool kMinimum, bool kBook>
void store_plain(const Group<kMinimum, kBook>& group, const Pair& found, Stored& out) {
  Vec best = half(found.scale);
  if constexpr (kMinimum) {
    // The minimum follows the scale as it is rounded.
    const Sums s = group.sums({best, found.minimum});
    out.m = half((group.sum_x - best * s.c) / group.w);
  } else {
    // Where rounding the fitted scale spoils it, the one that clips nothing.
    Vec largest = load(group.x);
    for (int k = 1; k < group.kind->group; ++k) {
      const Vec value = load(group.x + k * kLanes);
      largest = pick(magnitude(value) > magnitude(largest), value, largest);
    }
    const Vec plain = half(largest / splat(group.kind->lowest));
    const Bits worse = group.error_at({best, Vec{}}) > group.error_at({plain, Vec{}});
    best = pick(worse, plain, best);
  }
  out.d = best;
  out.grid[0] = {out.d, out.m};
}

template <bool kMinimum, bool kBook>
void solve(const Search& s, Group<kMinimum, kBook>* groups, const Pair* known, Stored& out) {
  Pair wanted[kMaxGroups];
  for (int g = 0; g < s.kind.per_block; ++g) {
    groups[g].prepare();
    wanted[g] = fitted(groups[g], s.effort, known ? known + g : nullptr);
  }
  if (!s.kind.nested) return store_plain(groups[0], wanted[0], out);
  Nest<kMinimum, kBook> nest{&s.kind, &s.effort, groups};
  nest.solve(wanted);
  out.d = nest.d;
  out.m = nest.m;
  for (int g = 0; g < s.kind.per_block; ++g) {
    out.sub[g] = nest.sub[g];
    out.least[g] = nest.least[g];
    out.grid[g] = nest.pair(g, nest.d, nest.m);
  }
}

// [count, lanes] of [lanes, stride]; lanes beyond the last block hold zeros.
void transpose(const float* from, std::size_t lanes, int count, float* to) {
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    if (lane >= lanes) {
      for (int k = 0; k < count; ++k) to[k * kLanes + lane] = 0.0F;
      continue;
    }
    for (int k = 0; k < count; ++k) to[k * kLanes + lane] = from[lane * count + k];
  }
}

void importance_of(const Search& s, std::size_t first, int block, float* to) {
  for (std::size_t lane = 0; lane < kLanes; ++lane) {
    const float* from = s.importance + (first + lane) % s.blocks_per_row * block;
    for (int k = 0; k < block; ++k) to[k * kLanes + lane] = from[k];
  }
}

void known_pairs(const Search& s, std::size_t first, std::size_t lanes, Pair* known) {
  const int count = s.kind.per_block;
  for (int g = 0; g < count; ++g) {
    known[g] = {splat(1.0F), Vec{}};
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      known[g].scale[lane] = s.known_scale[(first + lane) * count + g];
      known[g].minimum[lane] = s.known_minimum[(first + lane) * count + g];
    }
  }
}

void write_scales(const Search& s, std::size_t first, std::size_t lanes, const Stored& found) {
  store_part(s.d + first, lanes, found.d);
  if (s.kind.minimum) store_part(s.m + first, lanes, found.m);
  if (!s.kind.nested) return;
  const int count = s.kind.per_block;
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    for (int g = 0; g < count; ++g) {
      s.sub_scales[(first + lane) * count + g] = found.sub[g][lane];
      if (s.kind.minimum) s.sub_minimums[(first + lane) * count + g] = found.least[g][lane];
    }
  }
}

template <bool kMinimum, bool kBook>
void write_codes(const Search& s, std::size_t first, std::size_t lanes, const Stored& found,
                 const Group<kMinimum, kBook>* groups, float* buffer) {
  const int group = s.kind.group, block = group * s.kind.per_block;
  for (int k = 0; k < block; ++k) {
    const Pair& grid = found.grid[k / group];
    Vec value = load(buffer + k * kLanes);
    if constexpr (kMinimum) value = value - grid.minimum;
    const Vec steps = value / grid.scale;
    Vec code{};
    if constexpr (kBook) {
      for (int i = 1; i < kCodebook; ++i) {
        const float middle = (s.kind.levels[i - 1] + s.kind.levels[i]) / 2;
        code += pick(steps >= splat(middle), splat(1.0F), Vec{});
      }
    } else {
      code = groups[0].level(steps);
    }
    store(buffer + k * kLanes, code);
  }
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    std::int8_t* to = s.codes + (first + lane) * block;
    for (int k = 0; k < block; ++k) {
      to[k] = static_cast<std::int8_t>(static_cast<std::int32_t>(buffer[k * kLanes + lane]));
    }
  }
}

template <bool kMinimum, bool kBook>
void search_all(const Search& s, float* buffer) {
  const int block = s.kind.group * s.kind.per_block;
  float* importance = s.importance ? buffer + block * kLanes : nullptr;
  for (std::size_t first = 0; first < s.blocks; first += kLanes) {
    const std::size_t lanes = s.blocks - first < kLanes ? s.blocks - first : kLanes;
    transpose(s.weight + first * block, lanes, block, buffer);
    if (importance) importance_of(s, first, block, importance);
    Group<kMinimum, kBook> groups[kMaxGroups];
    for (int g = 0; g < s.kind.per_block; ++g) {
      const std::size_t at = static_cast<std::size_t>(g) * s.kind.group * kLanes;
      groups[g].kind = &s.kind;
      groups[g].x = buffer + at;
      groups[g].h = importance ? importance + at : nullptr;
    }
    Pair known[kMaxGroups];
    if (s.known_scale) known_pairs(s, first, lanes, known);
    Stored found;
    solve(s, groups, s.known_scale ? known : nullptr, found);
    write_scales(s, first, lanes, found);
    if (s.codes) write_codes(s, first, lanes, found, groups, buffer);
  }
}

}  // namespace

void search(const Search& s, float* buffer) {
  if (s.kind.minimum) return search_all<true, false>(s, buffer);
  if (s.kind.levels) return search_all<false, true>(s, buffer);
  search_all<false, false>(s, buffer);
}

}  // namespace coldpress::blocks::COLDPRESS_ISA
