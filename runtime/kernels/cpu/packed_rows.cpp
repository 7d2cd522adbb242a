// Codes of a file's rows, one in each byte.
#include "packed_rows.hpp"

#include <algorithm>
#include <cstring>

namespace coldpress {

namespace {

constexpr int kLargestTurned = 256;  // bytes of a block
constexpr std::uint64_t kEach = 0x0101010101010101U;  // times a byte: that byte eight times

std::uint64_t load_bytes(const std::uint8_t* from, int count) {
  std::uint64_t bytes = 0;
  std::memcpy(&bytes, from, count);
  return bytes;
}

// Eight codes at once, one in each byte; the first plane of a block finds nothing there yet.
void put(std::uint64_t codes, const Plane& plane, bool first, std::uint8_t* to) {
  codes <<= plane.shift;
  if (!first) codes |= load_bytes(to, 8);
  std::memcpy(to, &codes, 8);
}

// The lengths of runs are known to the compiler, which then takes several words of a run at once.
template <int kLane>
void read_runs(const Plane& plane, const std::uint8_t* from, bool first, std::uint8_t* to) {
  const auto [start, bytes, lane, bits, shift] = plane;  // bytes written to `to` may be anything's
  const std::uint64_t mask = kEach * ((1U << bits) - 1);
  for (int run = 0; run < bytes; run += kLane) {
    for (int bit = 0; bit < 8; bit += bits, to += kLane) {
      std::uint64_t words[kLane / 8];
      std::memcpy(words, from + run, kLane);
      for (std::uint64_t& word : words) word = ((word >> bit) & mask) << shift;
      if (!first) {
        std::uint64_t before[kLane / 8];
        std::memcpy(before, to, kLane);
        for (int i = 0; i < kLane / 8; ++i) words[i] |= before[i];
      }
      std::memcpy(to, words, kLane);
    }
  }
}

// Of four bytes the nibbles, of one byte the bits, a byte for each.
std::uint64_t spread_nibbles(std::uint64_t four) {
  four = (four | four << 16) & 0x0000FFFF0000FFFFU;
  four = (four | four << 8) & 0x00FF00FF00FF00FFU;
  return (four | four << 4) & 0x0F0F0F0F0F0F0F0FU;
}

std::uint64_t spread_bits(std::uint64_t one) {
  const std::uint64_t apart = (one * kEach) & 0x8040201008040201U;
  return ((apart + 0x7F * kEach) >> 7) & kEach;  // from where it was to the lowest bit
}

std::uint64_t spread_any(std::uint64_t bytes, int bits) {
  const std::uint64_t mask = (1U << bits) - 1;
  std::uint64_t codes = 0;
  for (int i = 0; i < 8; ++i) codes |= (bytes >> i * bits & mask) << 8 * i;
  return codes;
}

std::uint64_t spread(std::uint64_t bytes, int bits) {
  if (bits == 4) return spread_nibbles(bytes);
  return bits == 1 ? spread_bits(bytes) : spread_any(bytes, bits);
}

void read_neighbours(const Plane& plane, const std::uint8_t* from, bool first, std::uint8_t* to) {
  const int step = plane.bits;  // bytes that hold eight codes
  for (int at = 0; at < plane.bytes; at += step, to += 8) {
    const std::uint64_t bytes = load_bytes(from + at, step);
    put(spread(bytes, plane.bits), plane, first, to);
  }
}

void read_plane(const Plane& plane, const std::uint8_t* from, bool first, std::uint8_t* to) {
  if (plane.lane == 64) return read_runs<64>(plane, from, first, to);
  if (plane.lane == 32) return read_runs<32>(plane, from, first, to);
  if (plane.lane == 16) return read_runs<16>(plane, from, first, to);
  if (plane.lane == 8) return read_runs<8>(plane, from, first, to);
  read_neighbours(plane, from, first, to);
}

// The kinds of planes that `read_plane` knows; all of them have whole runs of eight codes.
bool known(const Plane& plane) {
  if (plane.bits < 1 || plane.bits > 8) return false;
  const bool lanes = plane.lane == 8 || plane.lane == 16 || plane.lane == 32 || plane.lane == 64;
  const bool runs = lanes && 8 % plane.bits == 0 && plane.bytes % plane.lane == 0;
  const bool neighbours = plane.lane == 1 && plane.bytes % plane.bits == 0;
  return (runs || neighbours) && plane.shift >= 0 && plane.shift + plane.bits <= 8;
}

}  // namespace

bool PackedRows::fits(std::size_t columns) const {
  if (block <= 0 || block_bytes <= 0 || planes.empty()) return false;
  if (padded(columns) / block * block_bytes > row_bytes) return false;
  if (turned > 0 && (block_bytes % 4 != 0 || block_bytes > kLargestTurned)) return false;
  return std::all_of(planes.begin(), planes.end(), [this](const Plane& plane) {
    return known(plane) && plane.start >= 0 && plane.bytes > 0 &&
           plane.start + plane.bytes <= block_bytes && plane.bytes * 8 == block * plane.bits;
  });
}

std::size_t PackedRows::padded(std::size_t columns) const {
  return (columns + block - 1) / block * block;
}

const std::uint8_t* PackedRows::block_at(std::size_t row, std::size_t index,
                                         std::uint8_t* scratch) const {
  if (turned == 0) return data + row * row_bytes + index * block_bytes;
  const std::size_t words = block_bytes / 4;
  for (std::size_t w = 0; w < words; ++w)
    std::memcpy(scratch + 4 * w, data + ((index * words + w) * turned + row) * 4, 4);
  return scratch;
}

void PackedRows::read(std::size_t row, std::size_t first, std::size_t columns,
                      std::int8_t* out) const {
  auto* to = reinterpret_cast<std::uint8_t*>(out);
  const std::size_t count = padded(columns);
  std::uint8_t scratch[kLargestTurned];
  for (std::size_t k = 0; k < count; k += block) {
    const std::uint8_t* from = block_at(row, (first + k) / block, scratch);
    for (std::size_t p = 0; p < planes.size(); ++p)
      read_plane(planes[p], from + planes[p].start, p == 0, to + k);
  }
  const auto less = static_cast<std::uint8_t>(offset);
  if (less == 0) return;
  for (std::size_t k = 0; k < count; ++k) to[k] -= less;
}

}  // namespace coldpress
