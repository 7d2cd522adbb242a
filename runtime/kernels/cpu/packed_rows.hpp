// Rows of codes as files hold them: some bits of each in one place of a block, some in another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace coldpress {

// `bits` bits of every code of a block, to be shifted left by `shift`, in the `bytes` bytes from
// `start` on. Each run of `lane` bytes holds 8 / bits runs of `lane` codes, the first in the lowest
// bits.
struct Plane {
  int start = 0;
  int bytes = 0;
  int lane = 1;
  int bits = 8;
  int shift = 0;
};

// A row is whole blocks of `block` codes, each in `block_bytes` bytes; the last codes of a row may be
// nobody's. What its planes add up to, less `offset`, is a code.
struct PackedRows {
  const std::uint8_t* data = nullptr;
  std::size_t row_bytes = 0;
  // Where rows are `turned`, `data` has four bytes of each of so many rows side by side, then the next
  // four of each.
  std::size_t turned = 0;
  int block = 1;
  int block_bytes = 1;
  int offset = 0;
  std::vector<Plane> planes;

  // Whether every plane lies within its block and has bits for each code, and rows of so many columns
  // within `row_bytes`.
  bool fits(std::size_t columns) const;
  // Codes that a row of so many columns takes with its last block.
  std::size_t padded(std::size_t columns) const;
  // Columns [first, first + columns) of a row, int8 [padded(columns)]; a block begins at `first`.
  void read(std::size_t row, std::size_t first, std::size_t columns, std::int8_t* out) const;

 private:
  // The bytes of a row's block, of turned rows copied to `scratch`.
  const std::uint8_t* block_at(std::size_t row, std::size_t index, std::uint8_t* scratch) const;
};

}  // namespace coldpress
