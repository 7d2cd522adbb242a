// For processors with AVX512-BF16. Products are exact and sums are float32; subnormal inputs count
// as zeros.
#include "moments.hpp"

#include <immintrin.h>

namespace coldpress::moments {

namespace {

constexpr std::size_t kLanes = 16;
constexpr std::size_t kRows = 8;  // of the sum, in registers at a time
constexpr std::size_t kVecs = kPanel / kLanes;
constexpr std::size_t kPanelNumbers = kPairs * kPanel * 2;

std::size_t panels_of(std::size_t columns) { return (columns + kPanel - 1) / kPanel; }

__mmask16 first_lanes(std::size_t count) {
  return count >= kLanes ? __mmask16(0xFFFF) : __mmask16((1U << count) - 1U);
}

// sum[kRows, kPanel] += weight * left^T right, of one chunk. rows, columns: what the sum has.
void add_tile(const std::uint16_t* left, const std::uint16_t* right, float weight, std::size_t rows,
              std::size_t columns, float* sum, std::size_t stride) {
  __m512 total[kRows][kVecs];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (std::size_t v = 0; v < kVecs; ++v) total[r][v] = _mm512_setzero_ps();
  }
  for (std::size_t p = 0; p < kPairs; ++p, left += 2 * kPanel, right += 2 * kPanel) {
    __m512bh across[kVecs];
#pragma GCC unroll 3
    for (std::size_t v = 0; v < kVecs; ++v) {
      across[v] = (__m512bh)_mm512_loadu_si512(right + 2 * kLanes * v);
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kRows; ++r) {
      int pair;
      __builtin_memcpy(&pair, left + 2 * r, sizeof pair);
      const __m512bh down = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 3
      for (std::size_t v = 0; v < kVecs; ++v) {
        total[r][v] = _mm512_dpbf16_ps(total[r][v], down, across[v]);
      }
    }
  }
  const __m512 scale = _mm512_set1_ps(weight);
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
    if (r >= rows) break;
#pragma GCC unroll 3
    for (std::size_t v = 0; v < kVecs; ++v) {
      const std::size_t before = v * kLanes;
      const __mmask16 there = first_lanes(columns > before ? columns - before : 0);
      float* at = sum + r * stride + before;
      const __m512 old = _mm512_maskz_loadu_ps(there, at);
      _mm512_mask_storeu_ps(at, there, _mm512_fmadd_ps(total[r][v], scale, old));
    }
  }
}

std::size_t at_most(std::size_t a, std::size_t limit) { return a < limit ? a : limit; }

void add_panels(const Product& p, std::size_t chunk, std::size_t i, std::size_t j) {
  const std::size_t down = panels_of(p.left_columns), across = panels_of(p.right_columns);
  const std::uint16_t* left = p.left + (chunk * down + i) * kPanelNumbers;
  const std::uint16_t* right = p.right + (chunk * across + j) * kPanelNumbers;
  const std::size_t rows = at_most(p.left_columns - i * kPanel, kPanel);
  const std::size_t columns = at_most(p.right_columns - j * kPanel, kPanel);
  float* sum = p.sum + i * kPanel * p.right_columns + j * kPanel;
  for (std::size_t r = 0; r < rows; r += kRows) {
    add_tile(left + 2 * r, right, p.weight, rows - r, columns, sum + r * p.right_columns,
             p.right_columns);
  }
}

}  // namespace

void pack(const std::uint16_t* values, std::size_t tokens, std::size_t columns,
          std::uint16_t* packed) {
  const std::size_t panels = panels_of(columns), width = panels * kPanel;
  const std::size_t chunks = (tokens + 2 * kPairs - 1) / (2 * kPairs);
  for (std::size_t pair = 0; pair < chunks * kPairs; ++pair) {
    const std::size_t chunk = pair / kPairs, token = 2 * pair;
    const std::uint16_t* row = values + token * columns;
    for (std::size_t c = 0; c < width; c += kLanes) {
      const __mmask16 there = first_lanes(columns > c ? columns - c : 0);
      const __mmask16 even = token < tokens ? there : 0, odd = token + 1 < tokens ? there : 0;
      const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(even, row + c));
      const __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd, row + columns + c));
      const std::size_t panel = (chunk * panels + c / kPanel) * kPanelNumbers;
      std::uint16_t* at = packed + panel + 2 * (pair % kPairs * kPanel + c % kPanel);
      _mm512_storeu_si512(at, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
    }
  }
}

void add(const Product& p, std::size_t first, std::size_t last) {
  for (std::size_t chunk = 0; chunk < p.chunks; ++chunk) {
    for (std::size_t i = first; i < last; ++i) {
      for (std::size_t j = p.upper ? i : 0; j < panels_of(p.right_columns); ++j) {
        add_panels(p, chunk, i, j);
      }
    }
  }
}

}  // namespace coldpress::moments
