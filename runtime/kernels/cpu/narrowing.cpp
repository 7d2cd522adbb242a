// Keys and values as the cache holds them.
#include "simd_pairs.hpp"

namespace coldpress::COLDPRESS_ISA {

// f(vector) -> vector for every kLanes of x; put(i, vector, count) for what becomes of them.
template <class Put>
inline void for_lanes(const float* x, int n, Put&& put) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) put(i, load(x + i), kLanes);
  if (i == n) return;
  float rest[kLanes] = {};
  for (int j = i; j < n; ++j) rest[j - i] = x[j];
  put(i, load(rest), n - i);
}

// The order of the operands lets NaN through.
inline Vec within(Vec a, float limit) { return min(splat(limit), max(splat(-limit), a)); }

void narrow(const float* x, int n, std::uint16_t* out) {
  for_lanes(x, n, [&](int i, Vec a, int count) {
    std::uint16_t narrowed[kLanes];
    store_float16(narrowed, within(a, 65504.0F));
    std::memcpy(out + i, narrowed, sizeof(*out) * count);
  });
}

void narrow_bfloat16(const float* x, int n, std::uint16_t* out) {
  for_lanes(x, n, [&](int i, Vec a, int count) {
    std::uint16_t narrowed[2 * kLanes];
    store_pairs(narrowed, narrow_pairs(a, a));
    std::memcpy(out + i, narrowed, sizeof(*out) * count);
  });
}

float narrow_int8(const float* x, int n, std::int8_t* out) {
  constexpr float kSmallest = 1.17549435e-38F;
  Vec most = splat(0.0F);
  for_lanes(x, n, [&](int, Vec a, int) { most = max_bits(most, abs(a)); });
  const std::uint32_t bits = max_lane_bits(most);
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  if (bits >= 0x7F800000U) {
    std::memset(out, 0, n);
    return __builtin_nanf("");
  }
  float scale = largest / 127.0F;
  if (scale < kSmallest) scale = kSmallest;
  const Vec magic = splat(12582912.0F);  // 1.5 * 2**23: adding it rounds to a whole number
  for_lanes(x, n, [&](int i, Vec a, int count) {
    std::int8_t codes[kLanes];
    store_int8(codes, sub(add(within(div(a, splat(scale)), 127.0F), magic), magic));
    std::memcpy(out + i, codes, count);
  });
  return scale;
}

}  // namespace coldpress::COLDPRESS_ISA
