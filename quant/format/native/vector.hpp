// One vector of float32, as wide as the instruction set at hand, in the compiler's own terms.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifndef COLDPRESS_ISA
#define COLDPRESS_ISA portable
#endif

#define COLDPRESS_INLINE static inline __attribute__((always_inline))

namespace coldpress::vectors::COLDPRESS_ISA {

#if defined(__AVX512F__)
constexpr std::size_t kLanes = 16;
#elif defined(__AVX2__)
constexpr std::size_t kLanes = 8;
#else
constexpr std::size_t kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t Bits __attribute__((vector_size(4 * kLanes)));

COLDPRESS_INLINE Vec splat(float a) { return a - Vec{}; }

COLDPRESS_INLINE Vec load(const float* p) {
  Vec a;
  std::memcpy(&a, p, sizeof a);
  return a;
}

COLDPRESS_INLINE void store(float* p, Vec a) { std::memcpy(p, &a, sizeof a); }

// The first `count` numbers at p, then `rest`.
COLDPRESS_INLINE Vec load_part(const float* p, std::size_t count, float rest) {
  if (count >= kLanes) return load(p);
  float lanes[kLanes];
  for (std::size_t i = 0; i < kLanes; ++i) lanes[i] = i < count ? p[i] : rest;
  return load(lanes);
}

COLDPRESS_INLINE void store_part(float* p, std::size_t count, Vec a) {
  if (count >= kLanes) return store(p, a);
  for (std::size_t i = 0; i < count; ++i) p[i] = a[i];
}

COLDPRESS_INLINE Vec smaller(Vec a, Vec b) { return b < a ? b : a; }
COLDPRESS_INLINE Vec larger(Vec a, Vec b) { return b > a ? b : a; }

// To the nearest whole number, ties to even; exact for magnitudes below 2**22.
COLDPRESS_INLINE Vec nearest(Vec a) {
  const Vec magic = splat(12582912.0F);  // 1.5 * 2**23: the last bit of such a float is worth 1
  return (a + magic) - magic;
}

// Bounds are whole, so that clamping before rounding gives what clamping afterwards would.
COLDPRESS_INLINE Vec snap(Vec steps, Vec lowest, Vec highest) {
  return nearest(smaller(larger(steps, lowest), highest));
}

}  // namespace coldpress::vectors::COLDPRESS_ISA
