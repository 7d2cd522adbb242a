// Sums of outer products of bfloat16 rows: what is multiplied, packed, and where it is added to.
//
// Rows are packed in chunks of `kPairs` pairs of tokens; in a chunk, panels of `kPanel` columns lie
// one after the other, and in a panel the pairs of each column side by side, as the instruction
// wants them: [chunks, panels, kPairs, kPanel, 2], filled up with zeros.
#pragma once

#include <cstddef>
#include <cstdint>

namespace coldpress::moments {

constexpr std::size_t kPanel = 48;
constexpr std::size_t kPairs = 128;

// values: [tokens, columns]
void pack(const std::uint16_t* values, std::size_t tokens, std::size_t columns,
          std::uint16_t* packed);

// sum [left_columns, right_columns] += weight * left^T right, for the panels [first, last) of left.
struct Product {
  const std::uint16_t* left = nullptr;
  const std::uint16_t* right = nullptr;
  std::size_t chunks = 0;
  std::size_t left_columns = 0;
  std::size_t right_columns = 0;
  float weight = 1.0F;
  bool upper = false;  // of the square, only panels on the diagonal and right of it
  float* sum = nullptr;
};

void add(const Product& product, std::size_t first, std::size_t last);

}  // namespace coldpress::moments
