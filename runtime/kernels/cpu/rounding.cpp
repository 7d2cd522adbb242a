// Rounding of a linear's input, row by row: a scale from the largest magnitude of a group, the
// quotient rounded to nearest with ties to even, times the scale.
//
// Source of the arithmetic, to the bit: fake quantization as compressed-tensors does it in float32.
#include "simd.hpp"

namespace coldpress::COLDPRESS_ISA {

constexpr float kSmallestScale = 1.1920928955078125e-7F;  // in place of 0: a group of zeros
constexpr float kSmallestE4m3Scale = 0.125F;
constexpr std::uint32_t kInfinityBits = 0x7F800000U;

inline std::uint32_t bits_of_float(float a) {
  std::uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  return bits;
}

inline float float_of_bits(std::uint32_t bits) {
  float a;
  std::memcpy(&a, &bits, sizeof a);
  return a;
}

// Adding `magic` leaves no bits below the last that is kept; magic is 1.5 * 2**23 of their unit.
inline Vec round_by(Vec x, Vec magic) { return sub(add(x, magic), magic); }

// A float with `mantissa` bits behind the point, and no exponent below that of `smallest`.
inline Vec round_to_float(Vec x, int mantissa, float smallest) {
  const Vec power = max_bits(exponent_of(x), splat(smallest));
  return round_by(x, mul(power, splat(12582912.0F / static_cast<float>(1 << mantissa))));
}

// The order of the operands lets NaN through.
inline Vec clamp(Vec x, float low, float high) { return min(splat(high), max(splat(low), x)); }

inline Vec round_to(Levels levels, Vec x) {
  switch (levels) {
    case Levels::int8: return round_by(clamp(x, -128.0F, 127.0F), splat(12582912.0F));
    case Levels::e4m3: return round_to_float(clamp(x, -448.0F, 448.0F), 3, 0.015625F);
    default: return round_to_float(clamp(x, -6.0F, 6.0F), 1, 1.0F);
  }
}

// f(offset, count) for a row's vectors; the last may have fewer lanes than the others.
template <class F>
inline void for_vectors(int n, F&& f) {
  for (int i = 0; i < n; i += kLanes) f(i, n - i < kLanes ? n - i : kLanes);
}

inline Vec load_some(const float* p, int count) {
  if (count == kLanes) return load(p);
  float lanes[kLanes] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}

inline void store_some(float* p, Vec a, int count) {
  if (count == kLanes) return store(p, a);
  float lanes[kLanes];
  store(lanes, a);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

// Largest magnitude; NaN when there is one.
inline float largest_of(const float* x, int n) {
  Vec most = splat(0.0F);
  for_vectors(n, [&](int i, int count) { most = max_bits(most, abs(load_some(x + i, count))); });
  return float_of_bits(max_lane_bits(most));
}

inline bool is_nan(float a) { return a != a; }

// The nearest e4m3 to a positive number, at most the largest.
inline float round_to_e4m3(float a) {
  float lanes[kLanes];
  store(lanes, round_to(Levels::e4m3, splat(a)));
  return lanes[0];
}

// Largest exponents of e4m3 and e2m1: what is left of a group's exponent is its scale's.
inline float power_of_two_scale(float largest, Levels levels) {
  const int offset = levels == Levels::e4m3 ? 8 : 2;
  // A quarter more: from 1.75 * 2**e on, the exponent is e + 1.
  const int field = static_cast<int>((bits_of_float(largest) + (1U << 21)) >> 23);
  const int exponent = field > offset ? field - offset : 0;
  // e8m0's smallest, 2**-127, is not a normal number of float32.
  return float_of_bits(exponent == 0 ? 1U << 22 : static_cast<std::uint32_t>(exponent) << 23);
}

float scale_of(float largest, const Rounding& r) {
  if (bits_of_float(largest) >= kInfinityBits) return float_of_bits(0x7FC00000U);
  if (r.scales == Scales::e8m0) return power_of_two_scale(largest, r.levels);
  const float span = r.levels == Levels::int8 ? r.span : r.levels == Levels::e4m3 ? 448.0F : 6.0F;
  float scale = largest / span;
  if (r.scales == Scales::e4m3) {
    scale = round_to_e4m3(r.divisor * scale);
    scale = (scale == 0.0F ? kSmallestE4m3Scale : scale) / r.divisor;
  }
  return scale == 0.0F ? kSmallestScale : scale;
}

void round_group(const float* x, int n, Levels levels, float scale, float* out) {
  const Vec scales = splat(scale);
  for_vectors(n, [&](int i, int count) {
    store_some(out + i, mul(round_to(levels, div(load_some(x + i, count), scales)), scales), count);
  });
}

// f(first column, count, scale) for each group of a row.
template <class F>
inline void for_groups(const float* x, int n, const Rounding& rounding, F&& f) {
  const int size = rounding.group > 0 ? rounding.group : n;
  for (int k = 0; k < n; k += size) {
    const int count = n - k < size ? n - k : size;
    const bool fixed = rounding.fixed != 0.0F;
    f(k, count, fixed ? rounding.fixed : scale_of(largest_of(x + k, count), rounding));
  }
}

void round_row(const float* x, int n, const Rounding& rounding, float* out) {
  for_groups(x, n, rounding, [&](int k, int count, float scale) {
    round_group(x + k, count, rounding.levels, scale, out + k);
  });
}

inline void store_codes(std::int8_t* p, Vec a, int count) {
  if (count == kLanes) return store_int8(p, a);
  std::int8_t lanes[kLanes];
  store_int8(lanes, a);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

inline bool is_made_of_runs(int n, const Rounding& r) {
  return r.group == kRun && n % kRun == 0 && r.fixed == 0.0F && r.levels == Levels::int8 &&
         r.scales == Scales::number;
}

// scale_of, lane by lane, of plain int8.
inline Vec scales_of(Vec largest, float span) {
  const Vec smallest = splat(float_of_bits(1));
  const Vec scale = div(largest, splat(span));
  const Vec numbers = select_less(scale, smallest, splat(kSmallestScale), scale);
  return select_less(largest, splat(float_of_bits(kInfinityBits)), numbers,
                     splat(float_of_bits(0x7FC00000U)));
}

// The same as for any groups, in sweeps over the row in which no run waits for another.
void quantize_runs(const float* x, int n, float span, std::int8_t* codes, float* scales,
                   std::int32_t* sums) {
  constexpr int kVecs = kRun / kLanes;
  for (int k = 0; k < n; k += kRun) {
    Vec most = abs(load(x + k));
    for (int v = 1; v < kVecs; ++v) most = max_bits(most, abs(load(x + k + v * kLanes)));
    scales[k / kRun] = float_of_bits(max_lane_bits(most));
  }
  const int runs = n / kRun;
  for_vectors(runs, [&](int i, int count) {
    store_some(scales + i, scales_of(load_some(scales + i, count), span), count);
  });
  for (int k = 0; k < n; k += kRun) {
    const Vec divisor = splat(scales[k / kRun]);
    for (int v = 0; v < kRun; v += kLanes)
      store_int8(codes + k + v, round_to(Levels::int8, div(load(x + k + v), divisor)));
  }
  for (int k = 0; k < n; k += kSumRun) sums[k / kSumRun] = sum_of_run(codes + k);
}

void quantize_row(const float* x, int n, const Rounding& rounding, std::int8_t* codes,
                  float* scales, std::int32_t* sums) {
  if (is_made_of_runs(n, rounding)) return quantize_runs(x, n, rounding.span, codes, scales, sums);
  for (int k = 0; k < n; k += kSumRun) sums[k / kSumRun] = 0;
  for_groups(x, n, rounding, [&](int k, int count, float scale) {
    const Vec divisor = splat(scale);
    for_vectors(count, [&](int i, int lanes) {
      const Vec found = round_to(Levels::int8, div(load_some(x + k + i, lanes), divisor));
      const Vec rounded = max(found, splat(-128.0F));  // the operands' order lets no NaN through
      store_codes(codes + k + i, rounded, lanes);
      sums[(k + i) / kSumRun] += sum_whole_lanes(rounded);
    });
    for (int i = 0; i < count; i += kRun) {
      const int run = count - i < kRun ? count - i : kRun;
      // Codes know no NaN: where a scale that is given meets one, it is the scale that tells.
      const bool lost = rounding.fixed != 0.0F && is_nan(largest_of(x + k + i, run));
      scales[(k + i) / kRun] = lost ? __builtin_nanf("") : scale;
    }
  });
}

}  // namespace coldpress::COLDPRESS_ISA
