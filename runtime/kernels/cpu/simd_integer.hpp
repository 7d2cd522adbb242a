// Products of bytes, summed in int32, in whichever instruction set this file is compiled for.
//
// All of it is exact.
#pragma once

#include "simd.hpp"

namespace coldpress::COLDPRESS_ISA {

#if defined(__AVX512F__)

using Integers = __m512i;  // kLanes of int32; or four bytes for each of them

inline Integers load_quads(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
inline Integers low_nibbles(Integers a) {
  return _mm512_and_si512(a, _mm512_set1_epi8(15));
}
inline Integers high_nibbles(Integers a) {
  return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15));
}
inline Integers load_codes(const Int8* p) { return _mm512_loadu_si512(p); }
// Signed codes as those of bytes, + 128.
inline Integers biased_codes(Integers a) { return _mm512_xor_si512(a, _mm512_set1_epi8(-128)); }
// Of each lane, the code in its byte n.
template <int n>
inline Integers code_of(Integers a) {
  return _mm512_srai_epi32(_mm512_slli_epi32(a, 24 - 8 * n), 24);
}
// The lowest bytes of four lanes of a, then those of b, then those of the next four lanes.
inline void store_low_bytes(std::int8_t* p, Integers a, Integers b) {
  const __m128i x = _mm512_cvtepi32_epi8(a);
  const __m128i y = _mm512_cvtepi32_epi8(b);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi32(x, y));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm_unpackhi_epi32(x, y));
}
inline Integers without_low_byte(Integers a) { return _mm512_srli_epi32(a, 8); }
inline Integers splat_integer(std::int32_t a) { return _mm512_set1_epi32(a); }
inline Integers add_integers(Integers a, Integers b) { return _mm512_add_epi32(a, b); }
inline Integers mul_integers(Integers a, Integers b) { return _mm512_mullo_epi32(a, b); }
inline Integers to_integers(Vec a) { return _mm512_cvtps_epi32(a); }
inline Vec to_floats(Integers a) { return _mm512_cvtepi32_ps(a); }
// Ends what the compiler knows of a value, so that it is not spilled in a loop for the sake of what
// comes after.
inline void part_from_loop(Integers& a) { asm("" : "+v"(a)); }

#if defined(__AVX512VNNI__)
// Written out, because compilers move and spill the sums of a large tile around the intrinsic.
inline Integers dot_bytes(Integers sum, Integers u, Integers s) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  return sum;
}
inline Integers dot_nibbles(Integers sum, Integers u, Integers s) { return dot_bytes(sum, u, s); }
#else
inline Integers dot_nibbles(Integers sum, Integers u, Integers s) {
  const __m512i pairs = _mm512_maddubs_epi16(u, s);
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
// Two products of whole bytes do not fit 16 bits; those of their halves do.
inline Integers dot_bytes(Integers sum, Integers u, Integers s) {
  const __m512i high = _mm512_maddubs_epi16(high_nibbles(u), s);
  sum = _mm512_add_epi32(sum, _mm512_madd_epi16(high, _mm512_set1_epi16(16)));
  return dot_nibbles(sum, low_nibbles(u), s);
}
#endif

#elif defined(__AVX2__)

using Integers = __m256i;

inline Integers load_quads(const std::uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Integers low_nibbles(Integers a) {
  return _mm256_and_si256(a, _mm256_set1_epi8(15));
}
inline Integers high_nibbles(Integers a) {
  return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15));
}
inline Integers load_codes(const Int8* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Integers biased_codes(Integers a) { return _mm256_xor_si256(a, _mm256_set1_epi8(-128)); }
template <int n>
inline Integers code_of(Integers a) {
  return _mm256_srai_epi32(_mm256_slli_epi32(a, 24 - 8 * n), 24);
}
inline __m128i low_bytes(Integers a) {
  const __m256i low = _mm256_and_si256(a, _mm256_set1_epi32(255));
  const __m128i half =
      _mm_packs_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  return _mm_packus_epi16(half, half);
}
inline void store_low_bytes(std::int8_t* p, Integers a, Integers b) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi32(low_bytes(a), low_bytes(b)));
}
inline Integers without_low_byte(Integers a) { return _mm256_srli_epi32(a, 8); }
inline Integers splat_integer(std::int32_t a) { return _mm256_set1_epi32(a); }
inline Integers add_integers(Integers a, Integers b) { return _mm256_add_epi32(a, b); }
inline Integers mul_integers(Integers a, Integers b) { return _mm256_mullo_epi32(a, b); }
inline Integers to_integers(Vec a) { return _mm256_cvtps_epi32(a); }
inline Vec to_floats(Integers a) { return _mm256_cvtepi32_ps(a); }
inline void part_from_loop(Integers& a) { asm("" : "+x"(a)); }

#if defined(__AVXVNNI__)
inline Integers dot_nibbles(Integers sum, Integers u, Integers s) {
  return _mm256_dpbusd_avx_epi32(sum, u, s);
}
inline Integers dot_bytes(Integers sum, Integers u, Integers s) {
  return _mm256_dpbusd_avx_epi32(sum, u, s);
}
#else
inline Integers dot_nibbles(Integers sum, Integers u, Integers s) {
  const __m256i pairs = _mm256_maddubs_epi16(u, s);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Integers dot_bytes(Integers sum, Integers u, Integers s) {
  const __m256i high = _mm256_maddubs_epi16(high_nibbles(u), s);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
  return dot_nibbles(sum, low_nibbles(u), s);
}
#endif

#else

typedef std::int32_t Integers __attribute__((vector_size(16)));
typedef std::uint8_t Quads __attribute__((vector_size(16)));

inline Integers load_quads(const std::uint8_t* p) {
  Integers a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
inline Integers low_nibbles(Integers a) { return a & 0x0F0F0F0F; }
inline Integers high_nibbles(Integers a) { return (a >> 4) & 0x0F0F0F0F; }
inline Integers load_codes(const Int8* p) {
  Integers a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
inline Integers biased_codes(Integers a) {
  return a ^ static_cast<std::int32_t>(0x80808080U);
}
template <int n>
inline Integers code_of(Integers a) {
  return a << (24 - 8 * n) >> 24;
}
inline void store_low_bytes(std::int8_t* p, Integers a, Integers b) {
  for (int lane = 0; lane < kLanes; ++lane) {
    p[lane] = static_cast<std::int8_t>(a[lane]);
    p[kLanes + lane] = static_cast<std::int8_t>(b[lane]);
  }
}
inline Integers without_low_byte(Integers a) { return a >> 8; }
inline Integers splat_integer(std::int32_t a) { return Integers{a, a, a, a}; }
inline Integers add_integers(Integers a, Integers b) { return a + b; }
inline Integers mul_integers(Integers a, Integers b) { return a * b; }
inline Integers to_integers(Vec a) { return __builtin_convertvector(a, Integers); }
inline Vec to_floats(Integers a) { return __builtin_convertvector(a, Vec); }
inline void part_from_loop(Integers&) {}
inline Integers dot_bytes(Integers sum, Integers u, Integers s) {
  Quads bytes;
  std::memcpy(&bytes, &u, sizeof bytes);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int j = 0; j < 4; ++j)
      sum[lane] += bytes[4 * lane + j] * static_cast<std::int8_t>(s[lane] >> 8 * j);
  return sum;
}
inline Integers dot_nibbles(Integers sum, Integers u, Integers s) { return dot_bytes(sum, u, s); }

#endif

// prefetch() that stays: GCC takes a function of nothing but the builtin for one without effects, and
// may leave out its calls. One line for the second-level cache; or all, for what is read at once.
inline void request(const std::uint8_t* line) {
#if defined(__AVX2__)
  asm volatile("prefetcht1 %0" : : "m"(*line));
#else
  prefetch(line, 1);
#endif
}
inline void request_near(const std::uint8_t* memory, std::size_t bytes) {
#if defined(__AVX2__)
  for (std::size_t line = 0; line < bytes; line += 64)
    asm volatile("prefetcht0 %0" : : "m"(memory[line]));
#else
  prefetch(memory, bytes);
#endif
}

inline Integers splat_quad(const std::int8_t* p) {
  std::int32_t four;
  std::memcpy(&four, p, sizeof four);
  return splat_integer(four);
}

}  // namespace coldpress::COLDPRESS_ISA
