// One vector of float32, in whichever instruction set this file is compiled for.
//
// Multiply-add is spelled out (and contraction is off), so that a sum has the same bits in every
// tile shape that computes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef COLDPRESS_ISA
#define COLDPRESS_ISA portable
#endif

namespace coldpress::COLDPRESS_ISA {

#if defined(__AVX512F__)

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kTileVecs = 4;

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
inline Vec splat(float a) { return _mm512_set1_ps(a); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
// a < b ? x : y, lane by lane.
inline Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
// 2 ** n for whole n in [-126, 127].
inline Vec power_of_two(Vec n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0F), n); }
// a * 2 ** n for whole n, and what is nearest to a whole number, ties to even.
inline Vec times_power_of_two(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }
inline Vec round_whole(Vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// 0 where a < b, else x.
inline Vec zero_where_less(Vec a, Vec b, Vec x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), x);
}
inline Vec load_float16(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load_bfloat16(const std::uint16_t* p) {
  const __m512i wide =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline Vec load_int8(const std::int8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_float16(std::uint16_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// Whole numbers within int8.
inline void store_int8(std::int8_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}
// The value of each e4m3 byte / 256: its bits, moved to where float16 has them. NaN is not known.
inline Vec load_e4m3(const std::uint8_t* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_cvtph_ps(
      _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<short>(0xBFFF))));
}
// Of magnitudes: their bits are ordered as they are, with infinity and then NaN at the top.
inline Vec abs(Vec a) { return _mm512_abs_ps(a); }
inline Vec max_bits(Vec a, Vec b) {
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
inline Vec exponent_of(Vec a) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7F800000)));
}
// The 16 values that a nibble can mean; the permutation looks at the low four bits alone.
using NibbleTable = __m512;
using CodebookTable = __m512;
inline CodebookTable codebook_table(const float* values) { return _mm512_loadu_ps(values); }
inline NibbleTable nibble_table(float bias) {
  const __m512 all = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_sub_ps(all, _mm512_set1_ps(bias));
}
inline void load_nibbles(const std::uint8_t* p, NibbleTable table, Vec& low, Vec& high) {
  const __m512i bytes =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  low = _mm512_permutexvar_ps(bytes, table);
  high = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table);
}

#elif defined(__AVX2__)

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kTileVecs = 2;

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
inline Vec splat(float a) { return _mm256_set1_ps(a); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
inline Vec power_of_two(Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline Vec times_power_of_two(Vec a, Vec n) { return _mm256_mul_ps(a, power_of_two(n)); }
inline Vec round_whole(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec zero_where_less(Vec a, Vec b, Vec x) {
  return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_NLT_UQ), x);
}
inline Vec load_float16(const std::uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load_bfloat16(const std::uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Vec load_int8(const std::int8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void store_float16(std::uint16_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store_int8(std::int8_t* p, Vec a) {
  const __m256i wide = _mm256_cvtps_epi32(a);
  const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
}
inline Vec load_e4m3(const std::uint8_t* p) {
  const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_cvtph_ps(
      _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(static_cast<short>(0xBFFF))));
}
inline Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), a); }
inline Vec max_bits(Vec a, Vec b) {
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
inline Vec exponent_of(Vec a) {
  return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0x7F800000)));
}
struct CodebookTable {
  __m256 low;
  __m256 high;
};
inline CodebookTable codebook_table(const float* values) {
  return {_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)};
}
// The permutation looks at the low three bits; the fourth, moved to the sign, picks the half.
inline Vec look_up(__m256i index, CodebookTable table) {
  const __m256 half = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, index),
                          _mm256_permutevar8x32_ps(table.high, index), half);
}
inline void load_nibbles(const std::uint8_t* p, CodebookTable table, Vec& low, Vec& high) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  low = look_up(bytes, table);
  high = look_up(_mm256_srli_epi32(bytes, 4), table);
}
using NibbleTable = __m256;
inline NibbleTable nibble_table(float bias) { return _mm256_set1_ps(bias); }
inline void load_nibbles(const std::uint8_t* p, NibbleTable bias, Vec& low, Vec& high) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  low = sub(_mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15))), bias);
  high = sub(_mm256_cvtepi32_ps(_mm256_srli_epi32(bytes, 4)), bias);
}

#else

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

#endif

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
