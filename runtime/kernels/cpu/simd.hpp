// One vector of float32, in whichever instruction set this file is compiled for.
//
// What differs between sets is in one file each; a further set is one more file of the same
// functions. Multiply-add is spelled out (and contraction is off), so that a sum has the same bits in
// every tile shape that computes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.hpp"

#ifndef COLDPRESS_ISA
#define COLDPRESS_ISA portable
#endif

#if defined(__AVX512F__)
#include "simd_avx512.hpp"
#elif defined(__AVX2__)
#include "simd_avx2.hpp"
#else
#include "simd_portable.hpp"
#endif

namespace coldpress::COLDPRESS_ISA {

#if defined(__AVX2__)
// Of kSumRun codes: their distances from -128, less those of zeros.
inline std::int32_t sum_of_run(const std::int8_t* codes) {
  const __m128i bytes = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)),
                                      _mm_set1_epi8(-128));
  const __m128i halves = _mm_sad_epu8(bytes, _mm_setzero_si128());
  return _mm_cvtsi128_si32(_mm_add_epi32(halves, _mm_unpackhi_epi64(halves, halves))) -
         128 * kSumRun;
}
#else
inline std::int32_t sum_of_run(const std::int8_t* codes) {
  std::int32_t sum = 0;
  for (int k = 0; k < kSumRun; ++k) sum += codes[k];
  return sum;
}
#endif

// Numbers as they lie in memory; the 16-bit types are told apart by their names alone.
struct Float16 {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};
struct Int8 {
  std::int8_t code;
};
inline Vec load_floats(const float* p) { return load(p); }
inline Vec load_floats(const Int8* p) { return load_int8(&p->code); }
inline Vec load_floats(const Float16* p) { return load_float16(&p->bits); }
inline Vec load_floats(const Bfloat16* p) { return load_bfloat16(&p->bits); }

// Asks for memory that is to be read soon.
inline void prefetch(const void* memory, std::size_t bytes) {
  for (std::size_t line = 0; line < bytes; line += 64)
    __builtin_prefetch(static_cast<const char*>(memory) + line, 0, 2);
}

// Lane by lane from the first to the last: the one order in which lanes are ever summed.
inline float sum_lanes(Vec a) {
  float lanes[kLanes];
  store(lanes, a);
  float sum = lanes[0];
  for (int i = 1; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

inline float max_lanes(Vec a) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(a);
#else
  float lanes[kLanes];
  store(lanes, a);
  float most = lanes[0];
  for (int i = 1; i < kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
#endif
}

// The largest lane's bits, of magnitudes.
inline std::uint32_t max_lane_bits(Vec a) {
#if defined(__AVX512F__)
  return static_cast<std::uint32_t>(_mm512_reduce_max_epi32(_mm512_castps_si512(a)));
#else
  std::uint32_t lanes[kLanes];
  std::memcpy(lanes, &a, sizeof lanes);
  std::uint32_t most = 0;
  for (std::uint32_t lane : lanes) most = lane > most ? lane : most;
  return most;
#endif
}

// Of whole numbers.
inline std::int32_t sum_whole_lanes(Vec a) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32(_mm512_cvtps_epi32(a));
#else
  return static_cast<std::int32_t>(sum_lanes(a));
#endif
}

inline Vec load_number(Number type, const void* base, std::size_t index) {
  switch (type) {
    case Number::float16:
      return load_float16(static_cast<const std::uint16_t*>(base) + index);
    case Number::bfloat16:
      return load_bfloat16(static_cast<const std::uint16_t*>(base) + index);
    default:
      return load(static_cast<const float*>(base) + index);
  }
}

// e ** x to about 1e-7, relative; 0 below -87, where float32 runs out of normal numbers. NaN stays
// NaN, which the order of the operands is for: what is no number must reach whoever can report it.
inline Vec exp(Vec x) {
  const Vec floor = splat(-87.0F);
  const Vec clamped = min(splat(88.0F), max(floor, x));
  const Vec magic = splat(12582912.0F);  // 1.5 * 2**23: adding it rounds to a whole number
  const Vec n = sub(fma(clamped, splat(1.44269504F), magic), magic);
  const Vec r = fma(n, splat(2.12194440e-4F), fma(n, splat(-0.693359375F), clamped));
  Vec p = splat(1.0F / 5040.0F);
  p = fma(p, r, splat(1.0F / 720.0F));
  p = fma(p, r, splat(1.0F / 120.0F));
  p = fma(p, r, splat(1.0F / 24.0F));
  p = fma(p, r, splat(1.0F / 6.0F));
  p = fma(p, r, splat(0.5F));
  p = fma(p, r, splat(1.0F));
  p = fma(p, r, splat(1.0F));
  return select_less(x, floor, splat(0.0F), mul(p, power_of_two(n)));
}

// 2 ** x to about 2e-7, relative, for x of at most some hundred; 0 below -125, and 1 for 0. NaN stays.
inline Vec exp2(Vec x) {
  const Vec n = round_whole(x);
  const Vec r = sub(x, n);
  Vec p = splat(0.00132647273F);  // minimax for [-0.5, 0.5]
  p = fma(p, r, splat(0.00967151299F));
  p = fma(p, r, splat(0.0555073358F));
  p = fma(p, r, splat(0.240222424F));
  p = fma(p, r, splat(0.693147004F));
  p = fma(p, r, splat(1.0F));
  return zero_where_less(x, splat(-125.0F), times_power_of_two(p, n));
}

// Near zero the quotient would lose the small numbers' digits; there the series is exact enough.
inline Vec tanh(Vec x) {
  const Vec e = exp(mul(splat(2.0F), x));
  const Vec far = sub(splat(1.0F), div(splat(2.0F), add(e, splat(1.0F))));
  const Vec s = mul(x, x);
  Vec p = splat(62.0F / 2835.0F);
  p = fma(p, s, splat(-17.0F / 315.0F));
  p = fma(p, s, splat(2.0F / 15.0F));
  p = fma(p, s, splat(-1.0F / 3.0F));
  const Vec near = fma(mul(p, s), x, x);
  return select_less(s, splat(0.0625F), near, far);
}

}  // namespace coldpress::COLDPRESS_ISA
