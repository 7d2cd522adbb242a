// Four float32 in one vector of the compiler's own, for any processor. Included by simd.hpp alone.
#pragma once

#include <cstdint>
#include <cstring>

namespace coldpress::COLDPRESS_ISA {

constexpr int kLanes = 4;
constexpr int kTileVecs = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef std::int32_t IntVec __attribute__((vector_size(16)));

inline Vec load(const float* p) {
  Vec a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
inline void store(float* p, Vec a) { std::memcpy(p, &a, sizeof a); }
inline Vec splat(float a) { return Vec{a, a, a, a}; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec div(Vec a, Vec b) { return a / b; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec select_less(Vec a, Vec b, Vec x, Vec y) { return a < b ? x : y; }
inline Vec power_of_two(Vec n) {
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  Vec a;
  std::memcpy(&a, &exponent, sizeof a);
  return a;
}
inline Vec times_power_of_two(Vec a, Vec n) { return a * power_of_two(n); }
// Of magnitudes below 2 ** 22.
inline Vec round_whole(Vec a) { return (a + 12582912.0F) - 12582912.0F; }
inline Vec zero_where_less(Vec a, Vec b, Vec x) { return a < b ? splat(0.0F) : x; }
inline float bits_to_float(std::uint32_t bits) {
  float a;
  std::memcpy(&a, &bits, sizeof a);
  return a;
}
inline float float16_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t magnitude = half & 0x7FFFU;
  if (magnitude >= 0x7C00U) return bits_to_float(sign | 0x7F800000U | ((magnitude & 0x3FFU) << 13));
  // The multiplication moves the exponent bias from 15 to 127, subnormal numbers included.
  const float value = bits_to_float(magnitude << 13) * bits_to_float(0x77800000U);
  return sign != 0 ? -value : value;
}
inline Vec load_float16(const std::uint16_t* p) {
  return Vec{float16_to_float(p[0]), float16_to_float(p[1]), float16_to_float(p[2]),
             float16_to_float(p[3])};
}
inline Vec load_bfloat16(const std::uint16_t* p) {
  const IntVec wide = IntVec{p[0], p[1], p[2], p[3]} << 16;
  Vec a;
  std::memcpy(&a, &wide, sizeof a);
  return a;
}
inline Vec load_int8(const std::int8_t* p) {
  return __builtin_convertvector((IntVec{p[0], p[1], p[2], p[3]}), Vec);
}
inline std::uint16_t float_to_float16(float a) {
  std::uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000U;
  bits &= 0x7FFFFFFFU;
  if (bits >= 0x7F800000U) return static_cast<std::uint16_t>(sign | (bits > 0x7F800000U ? 0x7E00U : 0x7C00U));
  if (bits < 0x38800000U) {  // below the normal numbers: a multiple of 2 ** -24
    const float units = bits_to_float(bits) * 16777216.0F;
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>((units + 12582912.0F) - 12582912.0F));
  }
  bits += 0xFFFU + (bits >> 13 & 1U);
  return static_cast<std::uint16_t>(sign | (bits - 0x38000000U) >> 13);
}
inline void store_float16(std::uint16_t* p, Vec a) {
  for (int i = 0; i < kLanes; ++i) p[i] = float_to_float16(a[i]);
}
inline void store_int8(std::int8_t* p, Vec a) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<std::int8_t>(a[i]);
}
inline Vec load_e4m3(const std::uint8_t* p) {
  const auto one = [](std::uint8_t byte) {
    return float16_to_float(static_cast<std::uint16_t>((byte & 0x80U) << 8 | (byte & 0x7FU) << 7));
  };
  return Vec{one(p[0]), one(p[1]), one(p[2]), one(p[3])};
}
inline IntVec bits_of(Vec a) {
  IntVec bits;
  std::memcpy(&bits, &a, sizeof bits);
  return bits;
}
inline Vec from_bits(IntVec bits) {
  Vec a;
  std::memcpy(&a, &bits, sizeof a);
  return a;
}
inline Vec abs(Vec a) { return from_bits(bits_of(a) & 0x7FFFFFFF); }
inline Vec max_bits(Vec a, Vec b) {
  const IntVec x = bits_of(a);
  const IntVec y = bits_of(b);
  return from_bits(x > y ? x : y);
}
inline Vec exponent_of(Vec a) { return from_bits(bits_of(a) & 0x7F800000); }
using CodebookTable = const float*;
inline CodebookTable codebook_table(const float* values) { return values; }
inline void load_nibbles(const std::uint8_t* p, CodebookTable table, Vec& low, Vec& high) {
  low = Vec{table[p[0] & 15], table[p[1] & 15], table[p[2] & 15], table[p[3] & 15]};
  high = Vec{table[p[0] >> 4], table[p[1] >> 4], table[p[2] >> 4], table[p[3] >> 4]};
}
using NibbleTable = Vec;
inline NibbleTable nibble_table(float bias) { return splat(bias); }
inline void load_nibbles(const std::uint8_t* p, NibbleTable bias, Vec& low, Vec& high) {
  const IntVec bytes = {p[0], p[1], p[2], p[3]};
  low = __builtin_convertvector(bytes & 15, Vec) - bias;
  high = __builtin_convertvector(bytes >> 4, Vec) - bias;
}

}  // namespace coldpress::COLDPRESS_ISA
