// The most that a core can do: products of bytes without memory, and memory without products.
#include "simd_integer.hpp"

namespace coldpress::COLDPRESS_ISA {

constexpr int kChains = 12;  // sums that do not wait for one another, more than the units need

std::int64_t multiply_bytes(int rounds, std::uint32_t* left) {
  // Which of two vectors is read is not known before, so that no product can be made only once.
  constexpr int kBytes = 4 * kLanes;
  alignas(64) std::uint8_t bytes[2 * kBytes];
  for (int i = 0; i < 2 * kBytes; ++i) bytes[i] = static_cast<std::uint8_t>(i % 127);
  Integers sums[kChains];
  for (Integers& sum : sums) sum = splat_integer(0);
  const Integers signs = splat_integer(0x01FF02FE);
  for (int round = 0; round < rounds; ++round) {
    const Integers u = load_quads(bytes + (round & 1) * kBytes);
    for (Integers& sum : sums) sum = dot_bytes(sum, u, signs);
  }
  for (int i = 1; i < kChains; ++i) sums[0] = add_integers(sums[0], sums[i]);
  std::memcpy(left, &sums[0], sizeof *left);
  return static_cast<std::int64_t>(rounds) * kChains * kLanes * 4 * 2;
}

std::uint32_t read_bytes(const void* memory, std::size_t bytes) {
  constexpr int kVectors = kProbedBytes / (4 * kLanes);
  const auto* at = static_cast<const std::uint8_t*>(memory);
  Integers sums[4];
  for (Integers& sum : sums) sum = splat_integer(0);
  for (std::size_t i = 0; i < bytes; i += kProbedBytes)
    for (int v = 0; v < kVectors; ++v)
      sums[v % 4] = add_integers(sums[v % 4], load_quads(at + i + v * 4 * kLanes));
  sums[0] = add_integers(add_integers(sums[0], sums[1]), add_integers(sums[2], sums[3]));
  std::uint32_t first;
  std::memcpy(&first, &sums[0], sizeof first);
  return first;
}

}  // namespace coldpress::COLDPRESS_ISA
