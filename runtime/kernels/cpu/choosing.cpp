// The next token of a row of logits, drawn.
//
// Rows are long and few of their numbers matter, so nothing is sorted: what stays of a row is found
// as a least number, by counting or weighing what is not below one that is tried.
#include "simd.hpp"

namespace coldpress::COLDPRESS_ISA {

namespace {

constexpr int kBlock = 2048;  // numbers whose sum is kept in float32, and added in float64
constexpr int kFew = 64;      // that are sorted one by one
constexpr float kLowest = -3.402823466e38F;

// The numbers of a row from `i` on; those behind its end are `rest`.
inline Vec load_some(const float* row, int i, int n, float rest) {
  if (i + kLanes <= n) return load(row + i);
  float lanes[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = i + lane < n ? row[i + lane] : rest;
  return load(lanes);
}

float largest_of(const float* row, int start, int end) {
  Vec most = splat(-__builtin_inff());
  for (int i = start; i < end; i += kLanes)
    most = max(load_some(row, i, end, -__builtin_inff()), most);
  return max_lanes(most);
}

// Of those below `bound`.
float largest_below(const float* row, int start, int end, float bound) {
  const Vec nothing = splat(-__builtin_inff());
  Vec most = nothing;
  for (int i = start; i < end; i += kLanes) {
    const Vec x = load_some(row, i, end, -__builtin_inff());
    most = max(select_less(x, splat(bound), x, nothing), most);
  }
  return max_lanes(most);
}

struct Mass {
  double weight;
  int count;
};

// Of what is not below `least`: how many, and their sum.
Mass mass_above(const float* row, int n, float least) {
  const Vec bound = splat(least);
  const Vec one = splat(1.0F);
  Vec counts = splat(0.0F);
  double weight = 0.0;
  for (int start = 0; start < n; start += kBlock) {
    const int end = start + kBlock < n ? start + kBlock : n;
    Vec sum = splat(0.0F);
    for (int i = start; i < end; i += kLanes) {
      // Never reached, for it is compared as below: what is behind the end is infinitely small.
      const Vec x = load_some(row, i, end, -__builtin_inff());
      sum = add(sum, zero_where_less(x, bound, x));
      counts = add(counts, zero_where_less(x, bound, one));
    }
    weight += sum_lanes(sum);
  }
  return {weight, static_cast<int>(sum_lanes(counts))};
}

// What stays of a row: all above `least`, and the first `ties` of those that equal it.
struct Cut {
  float least;
  int ties;
};

float between(float low, float high, bool weighed) {
  if (!weighed) return low / 2 + high / 2;
  std::uint32_t a;
  std::uint32_t b;
  std::memcpy(&a, &low, sizeof a);
  std::memcpy(&b, &high, sizeof b);
  a += (b - a) / 2;  // of numbers above 0, about in the middle of their logarithms
  std::memcpy(&low, &a, sizeof a);
  return low;
}

void sort_down(float* values, int count) {
  for (int i = 1; i < count; ++i) {
    const float value = values[i];
    int at = i;
    for (; at > 0 && values[at - 1] < value; --at) values[at] = values[at - 1];
    values[at] = value;
  }
}

// The cut within the numbers of [low, high), at most kFew.
Cut cut_within(const float* row, int n, float low, float high, double missing, bool weighed) {
  float band[kFew];
  int count = 0;
  for (int start = 0; start < n; start += kFew) {
    const int end = start + kFew < n ? start + kFew : n;
    if (largest_below(row, start, end, high) < low) continue;
    for (int i = start; i < end && count < kFew; ++i)
      if (row[i] >= low && row[i] < high) band[count++] = row[i];
  }
  sort_down(band, count);
  Cut cut{count > 0 ? band[0] : low, 0};
  for (int i = 0; i < count && missing > 0.0; ++i) {
    if (band[i] != cut.least) cut = {band[i], 0};
    ++cut.ties;
    missing -= weighed ? band[i] : 1.0;
  }
  return cut;
}

// What is to stay of a row: the fewest of its largest numbers whose count, or whose sum (weighed: none
// is below 0), reaches `size`; all of them where it is out of reach.
struct Goal {
  double size;
  bool weighed;
  bool met(const Mass& mass) const { return (weighed ? mass.weight : mass.count) >= size; }
  double missing(const Mass& mass) const { return size - (weighed ? mass.weight : mass.count); }
};

// What is not below `low` meets a goal, and what is not below `high` does not, or `low` is the least.
struct Band {
  float low;
  float high;
  Mass reached;
  Mass above;
};

// The next larger number, of those that are not infinite.
float next_above(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x == 0.0F) {
    bits = 1;
  } else {
    bits += x > 0.0F ? 1U : ~0U;
  }
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// A band, found by going down from the largest number in steps that double.
Band reach(const float* row, int n, float most, const Goal& goal) {
  const float least = goal.weighed ? 0.0F : kLowest;
  Band band{next_above(most), 0.0F, {0.0, 0}, {0.0, 0}};
  float step = goal.weighed ? 4.0F : 2.0F;
  for (; !goal.met(band.reached) && band.low > least; step *= 2) {
    band.high = band.low;
    band.above = band.reached;
    band.low = goal.weighed ? most * __builtin_expf(-step) : most - step;
    if (!(band.low > least) || step > 1e30F) band.low = least;
    band.reached = mass_above(row, n, band.low);
  }
  return band;
}

Cut narrow_down(const float* row, int n, Band band, const Goal& goal) {
  if (!goal.met(band.reached)) return {band.low, n};
  while (band.reached.count - band.above.count > kFew) {
    const float middle = between(band.low, band.high, goal.weighed);
    if (!(middle > band.low && middle < band.high)) break;  // all are alike
    const Mass mass = mass_above(row, n, middle);
    if (goal.met(mass)) {
      band.low = middle;
      band.reached = mass;
    } else {
      band.high = middle;
      band.above = mass;
    }
  }
  const double missing = goal.missing(band.above);
  if (band.reached.count - band.above.count <= kFew)
    return cut_within(row, n, band.low, band.high, missing, goal.weighed);
  const double ties = goal.weighed ? missing / band.low : missing;
  return {band.low, ties < n ? static_cast<int>(__builtin_ceil(ties)) : n};
}

// Zeros where the cut leaves nothing of a row of weights.
void apply_cut(float* weights, int n, Cut cut) {
  int ties = cut.ties;
  for (int i = 0; i < n; i += kLanes) {
    if (i + kLanes > n) {
      for (int k = i; k < n; ++k)
        if (weights[k] < cut.least) weights[k] = 0.0F;
      break;
    }
    store(weights + i, zero_where_less(load(weights + i), splat(cut.least), load(weights + i)));
  }
  if (ties >= n) return;
  const float above = next_above(cut.least);
  if (mass_above(weights, n, cut.least).count - mass_above(weights, n, above).count <= ties) return;
  for (int i = 0; i < n; ++i)
    if (weights[i] == cut.least && --ties < 0) weights[i] = 0.0F;
}

// Numbers and where they were in the row: what is left of it.
struct Kept {
  float* values;
  std::int32_t* ids;
  int count;
};

// What a cut leaves of n numbers that were at `ids` (nullptr: in the order of the row), in their order.
// They may be `kept` itself.
void keep(const float* row, const std::int32_t* ids, int n, Cut cut, Kept& kept) {
  kept.count = 0;
  for (int start = 0; start < n; start += kFew) {
    const int end = start + kFew < n ? start + kFew : n;
    if (largest_of(row, start, end) < cut.least) continue;
    for (int i = start; i < end; ++i) {
      if (!(row[i] >= cut.least) || (row[i] == cut.least && --cut.ties < 0)) continue;
      kept.ids[kept.count] = ids == nullptr ? i : ids[i];
      kept.values[kept.count++] = row[i];
    }
  }
}

// Gaps to the largest, in temperatures, become weights: the largest has 1. Their sum.
double weigh_all(const float* row, int n, float most, float temperature, float* weights) {
  const Vec peak = splat(most);
  const Vec factor = splat(1.0F / temperature);
  double total = 0.0;
  for (int start = 0; start < n; start += kBlock) {
    const int end = start + kBlock < n ? start + kBlock : n;
    Vec sum = splat(0.0F);
    for (int i = start; i < end; i += kLanes) {
      const Vec gap = mul(sub(load_some(row, i, end, -__builtin_inff()), peak), factor);
      const Vec weight = exp(gap);
      sum = add(sum, weight);
      if (i + kLanes <= end) {
        store(weights + i, weight);
      } else {
        float lanes[kLanes];
        store(lanes, weight);
        for (int k = i; k < end; ++k) weights[k] = lanes[k - i];
      }
    }
    total += sum_lanes(sum);
  }
  return total;
}

double block_sum(const float* weights, int start, int n) {
  const int end = start + kBlock < n ? start + kBlock : n;
  Vec sum = splat(0.0F);
  for (int i = start; i < end; i += kLanes) sum = add(sum, load_some(weights, i, end, 0.0F));
  return sum_lanes(sum);
}

// Where the running sum of weights passes `uniform` of the whole; never at one of weight 0.
int place_of(const float* weights, int n, double uniform) {
  double total = 0.0;
  for (int start = 0; start < n; start += kBlock) total += block_sum(weights, start, n);
  const double target = uniform * total;
  double before = 0.0;
  int last = 0;
  for (int start = 0; start < n; start += kBlock) {
    const double sum = block_sum(weights, start, n);
    if (before + sum <= target && start + kBlock < n) {
      before += sum;
      continue;
    }
    for (int i = start; i < n; ++i) {
      if (weights[i] > 0.0F) last = i;
      before += weights[i];
      if (before > target) return last;
    }
  }
  // Rounding left the target to nobody: it is the last one's.
  for (int i = 0; i < n; ++i)
    if (weights[i] > 0.0F) last = i;
  return last;
}

}  // namespace

int draw(const float* row, int n, const DrawOptions& options, float* values, std::int32_t* ids) {
  constexpr float kLeast = 1e-30F;  // below it, every gap is infinite
  const float most = largest_of(row, 0, n);
  Kept kept{values, ids, n};
  bool listed = false;
  if (options.top_k > 0 && options.top_k < n) {
    const Goal goal{static_cast<double>(options.top_k), false};
    const Band band = reach(row, n, most, goal);
    keep(row, nullptr, n, {band.low, n}, kept);
    const Cut cut = narrow_down(values, kept.count, band, goal);
    keep(values, ids, kept.count, cut, kept);
    row = values;
    listed = true;
  }
  const float temperature = options.temperature > kLeast ? options.temperature : kLeast;
  const double total = weigh_all(row, kept.count, most, temperature, values);
  if (options.top_p < 1.0F) {
    const Goal goal{options.top_p * total, true};
    const Band band = reach(values, kept.count, 1.0F, goal);
    // What is far below need not be looked at again and again, where it is most of all.
    if (band.low > 0.0F && band.reached.count < kept.count / 4) {
      keep(values, listed ? ids : nullptr, kept.count, {band.low, n}, kept);
      listed = true;
    }
    apply_cut(values, kept.count, narrow_down(values, kept.count, band, goal));
  }
  if (options.min_p > 0.0F) apply_cut(values, kept.count, {options.min_p, n});
  const int place = place_of(values, kept.count, options.uniform);
  return listed ? ids[place] : place;
}

}  // namespace coldpress::COLDPRESS_ISA
