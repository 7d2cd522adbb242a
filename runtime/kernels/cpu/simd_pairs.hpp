// Pairs of bfloat16, a pair to a lane: what processors multiply at twice the rate of float32.
//
// A product of pairs is two multiply-adds, the second elements' first, and numbers below the normal
// ones count as zero: so the instruction does it, and so do the others, to the bit, while
// NoSubnormals lives.
#pragma once

#include "simd.hpp"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace coldpress::COLDPRESS_ISA {

class NoSubnormals {
#if defined(__SSE2__)
 public:
  NoSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040U); }
  ~NoSubnormals() { _mm_setcsr(before_); }
  NoSubnormals(const NoSubnormals&) = delete;
  NoSubnormals& operator=(const NoSubnormals&) = delete;

 private:
  unsigned before_;
#else
 public:
  NoSubnormals() {}
  ~NoSubnormals() {}
#endif
};

// The nearest bfloat16's bits, in the upper half: ties to even, NaN stays, subnormal numbers vanish.
inline std::uint32_t nearest_bfloat16(std::uint32_t bits) {
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude < 0x00800000U) return bits & 0x80000000U;
  if (magnitude > 0x7F800000U) return (bits | 0x00400000U) & 0xFFFF0000U;
  return (bits + 0x7FFFU + (bits >> 16 & 1U)) & 0xFFFF0000U;
}

enum class Half : std::uint32_t { first = 0x0000FFFFU, second = 0xFFFF0000U };

#if defined(__AVX512F__)

using Pairs = __m512i;

inline Pairs load_pairs(const std::uint16_t* p) { return _mm512_loadu_si512(p); }
inline void store_pairs(std::uint16_t* p, Pairs a) { _mm512_storeu_si512(p, a); }
inline Pairs splat_pair(std::uint32_t a) { return _mm512_set1_epi32(static_cast<int>(a)); }
inline Pairs only(Half half, Pairs a) {
  return _mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(half)));
}
inline Vec first_of(Pairs a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
inline Vec second_of(Pairs a) { return _mm512_castsi512_ps(only(Half::second, a)); }
#if defined(__AVX512BF16__)
// Neighbours become pairs: a's lanes, then b's.
inline Pairs narrow_pairs(Vec a, Vec b) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
}
#else
inline __m256i narrow_half(Vec a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i magnitude = _mm512_castps_si512(_mm512_abs_ps(a));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i near = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  near = _mm512_mask_or_epi32(
      near, _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7F800000)), bits,
      _mm512_set1_epi32(0x00400000));
  near = _mm512_mask_and_epi32(
      near, _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x00800000)), bits,
      _mm512_set1_epi32(static_cast<int>(0x80000000U)));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(near, 16));
}
inline Pairs narrow_pairs(Vec a, Vec b) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(narrow_half(a)), narrow_half(b), 1);
}
#endif

#elif defined(__AVX2__)

using Pairs = __m256i;

inline Pairs load_pairs(const std::uint16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline void store_pairs(std::uint16_t* p, Pairs a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
}
inline Pairs splat_pair(std::uint32_t a) { return _mm256_set1_epi32(static_cast<int>(a)); }
inline Pairs only(Half half, Pairs a) {
  return _mm256_and_si256(a, _mm256_set1_epi32(static_cast<int>(half)));
}
inline Vec first_of(Pairs a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
inline Vec second_of(Pairs a) { return _mm256_castsi256_ps(only(Half::second, a)); }
inline __m256i narrow_half(Vec a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i near = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
  near = _mm256_blendv_epi8(near, _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000)),
                            _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7F800000)));
  near = _mm256_blendv_epi8(
      near, _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0x80000000U))),
      _mm256_cmpgt_epi32(_mm256_set1_epi32(0x00800000), magnitude));
  return _mm256_srli_epi32(near, 16);
}
inline Pairs narrow_pairs(Vec a, Vec b) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(narrow_half(a), narrow_half(b)), 0xD8);
}

#else

using Pairs = IntVec;

inline Pairs load_pairs(const std::uint16_t* p) {
  Pairs a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
inline void store_pairs(std::uint16_t* p, Pairs a) { std::memcpy(p, &a, sizeof a); }
inline Pairs splat_pair(std::uint32_t a) {
  const std::int32_t same = static_cast<std::int32_t>(a);
  return Pairs{same, same, same, same};
}
inline Pairs only(Half half, Pairs a) { return a & splat_pair(static_cast<std::uint32_t>(half)); }
inline Vec first_of(Pairs a) { return from_bits(a << 16); }
inline Vec second_of(Pairs a) { return from_bits(only(Half::second, a)); }
inline Pairs narrow_pairs(Vec a, Vec b) {
  std::uint32_t bits[2 * kLanes];
  std::memcpy(bits, &a, sizeof a);
  std::memcpy(bits + kLanes, &b, sizeof b);
  std::uint16_t halves[2 * kLanes];
  for (int i = 0; i < 2 * kLanes; ++i)
    halves[i] = static_cast<std::uint16_t>(nearest_bfloat16(bits[i]) >> 16);
  return load_pairs(halves);
}

#endif

inline Vec dot_pairs(Vec sum, Pairs a, Pairs b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
  return fma(first_of(a), first_of(b), fma(second_of(a), second_of(b), sum));
#endif
}

}  // namespace coldpress::COLDPRESS_ISA
