// How a weight gets into the layout that the kernels stream, a strip at a time.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "matrix.hpp"

namespace coldpress {

namespace {

std::size_t width(Number type) { return type == Number::float32 ? 4 : 2; }

bool in_pairs(Codes type) { return type == Codes::int4 || type == Codes::table; }

// from [lanes, columns] with these strides to [columns, kStrip], the missing lanes left zero.
template <class T>
void transpose_strip(const T* from, std::ptrdiff_t row_stride, std::ptrdiff_t stride, int lanes,
                     int columns, T* to) {
  constexpr int kBlock = 64;
  for (int k0 = 0; k0 < columns; k0 += kBlock) {
    const int k1 = std::min(k0 + kBlock, columns);
    for (int lane = 0; lane < lanes; ++lane) {
      const T* row = from + lane * row_stride;
      for (int k = k0; k < k1; ++k) to[static_cast<std::size_t>(k) * kStrip + lane] = row[k * stride];
    }
  }
}

template <class T>
void transpose_numbers(const Numbers& numbers, int strip, int lanes, int columns, void* to) {
  const std::size_t start = static_cast<std::size_t>(strip) * kStrip;
  transpose_strip(static_cast<const T*>(numbers.data) +
                      static_cast<std::ptrdiff_t>(start) * numbers.row_stride,
                  numbers.row_stride, numbers.stride, lanes, columns,
                  static_cast<T*>(to) + start * columns);
}

void transpose_strip(const Numbers& numbers, int strip, int lanes, int columns, void* to) {
  if (numbers.type == Number::float32) {
    transpose_numbers<std::uint32_t>(numbers, strip, lanes, columns, to);
  } else {
    transpose_numbers<std::uint16_t>(numbers, strip, lanes, columns, to);
  }
}

}  // namespace

int quad_step_of(const std::vector<std::int32_t>& group_starts) {
  int step = kRun;
  for (std::size_t g = 0; g + 1 < group_starts.size(); ++g)
    while (step >= kSumRun && group_starts[g] % step != 0) step /= 2;
  return step < kSumRun ? 0 : step;
}

StripCodes::StripCodes(const CodesSource& source, int columns, int strip, const std::uint8_t* read)
    : codes_(source.codes),
      columns_(columns),
      first_row_(static_cast<std::size_t>(strip) * kStrip),
      packed_(source.packed) {
  if (read == nullptr) return;
  packed_.data = read;
  first_row_ = 0;
}

void StripCodes::read(int lane, int first, int count, std::int8_t* to) const {
  const std::size_t row = first_row_ + lane;
  if (codes_ != nullptr) {
    std::copy_n(codes_ + row * columns_ + first, count, to);
  } else {
    packed_.read(row, first, count, to);
  }
}

std::size_t StripCodes::padded(std::size_t columns) const {
  return codes_ != nullptr ? columns : packed_.padded(columns);
}

template <class F>
void Matrix::pack_strips(ThreadPool& pool, const FileRows* file, F&& pack) {
  std::vector<std::vector<std::uint8_t>> scratch(pool.size());
  std::atomic<bool> ends_early{false};
  pool.run(strips(), [&](int strip, int thread) {
    if (file == nullptr) return pack(static_cast<const std::uint8_t*>(nullptr), strip);
    std::vector<std::uint8_t>& rows = scratch[thread];
    rows.resize(kStrip * file->row_bytes());
    const std::size_t lanes = std::min(kStrip, rows_ - strip * kStrip);
    if (!file->read(static_cast<std::size_t>(strip) * kStrip, lanes, rows.data())) {
      ends_early = true;
    } else {
      pack(static_cast<const std::uint8_t*>(rows.data()), strip);
    }
  });
  if (ends_early) throw std::runtime_error("ends early; the file became shorter");
}

Matrix::Matrix(int rows, int columns, Numbers numbers, ThreadPool& pool)
    : Matrix(rows, columns, numbers, nullptr, pool) {}

Matrix::Matrix(int rows, int columns, Number type, const FileRows& file, ThreadPool& pool)
    : Matrix(rows, columns, Numbers{type, nullptr, columns, 1}, &file, pool) {}

Matrix::Matrix(int rows, int columns, Numbers numbers, const FileRows* file, ThreadPool& pool)
    : rows_(rows), columns_(columns), codes_type_(Codes::number), number_(numbers.type) {
  strip_bytes_ = static_cast<std::size_t>(columns) * kStrip * width(number_);
  codes_ = Memory<std::uint8_t>(strips() * strip_bytes_, Streamed{});
  pack_strips(pool, file, [&](const std::uint8_t* read, int strip) {
    Numbers here = numbers;
    const std::ptrdiff_t skipped = static_cast<std::ptrdiff_t>(strip) * kStrip * columns_;
    if (read != nullptr) here.data = read - skipped * static_cast<std::ptrdiff_t>(width(number_));
    const int lanes = std::min(kStrip, rows_ - strip * kStrip);
    transpose_strip(here, strip, lanes, columns_, codes_.data());
  });
}

Matrix::Matrix(int rows, int columns, CodesSource source, ThreadPool& pool)
    : rows_(rows),
      columns_(columns),
      codes_type_(source.type),
      unsigned_codes_(source.minimum.data != nullptr),
      table_(std::move(source.table)),
      divisor_(source.divisor),
      group_starts_(std::move(source.group_starts)),
      column_order_(std::move(source.column_order)),
      scale_type_(source.scale.type),
      minimum_type_(source.minimum.type),
      nesting_(source.nesting) {
  if (source.quads) quad_step_ = quad_step_of(group_starts_);
  const std::size_t padded = in_quads() ? round_up(columns, kRun) : columns;
  strip_bytes_ = (in_pairs(codes_type_) ? (padded + 1) / 2 : padded) * kStrip;
  codes_ = Memory<std::uint8_t>(strips() * strip_bytes_, Streamed{});
  const std::size_t groups = strips() * (group_starts_.size() - 1) * kStrip;
  const std::size_t numbers = groups >> nesting_;
  scales_ = Memory<std::uint8_t>(numbers * width(scale_type_), Streamed{});
  if (source.zero_point != nullptr) zero_points_ = Memory<std::int8_t>(groups, Streamed{});
  if (unsigned_codes_) minimums_ = Memory<std::uint8_t>(numbers * width(minimum_type_), Streamed{});
  if (source.sub_scale != nullptr) sub_scales_ = Memory<std::int8_t>(groups, Streamed{});
  if (source.sub_minimum != nullptr) sub_minimums_ = Memory<std::int8_t>(groups, Streamed{});
  pack_strips(pool, source.file.get(), [&](const std::uint8_t* read, int strip) {
    const StripCodes codes(source, columns_, strip, read);
    in_quads() ? pack_quads(codes, strip) : pack_codes(codes, strip);
    pack_groups(source, strip);
  });
}

void Matrix::pack_codes(const StripCodes& codes, int strip) {
  std::uint8_t* to = codes_.data() + strip * strip_bytes_;
  const int lanes = std::min(kStrip, rows_ - strip * kStrip);
  const std::uint8_t bias = codes_type_ == Codes::int4 && !unsigned_codes_ ? 8 : 0;
  std::vector<std::int8_t> row(codes.padded(columns_));
  for (int lane = 0; lane < lanes; ++lane) {
    codes.read(lane, 0, columns_, row.data());
    const auto code = [&](int k) {
      return static_cast<std::uint8_t>(row[column_order_.empty() ? k : column_order_[k]]);
    };
    if (!in_pairs(codes_type_)) {
      for (int k = 0; k < columns_; ++k) to[static_cast<std::size_t>(k) * kStrip + lane] = code(k);
      continue;
    }
    for (int k = 0; k < columns_; k += 2) {
      const std::uint8_t low = (code(k) + bias) & 15;
      const std::uint8_t high = k + 1 < columns_ ? (code(k + 1) + bias) & 15 : 0;
      to[static_cast<std::size_t>(k / 2) * kStrip + lane] =
          static_cast<std::uint8_t>(low | high << 4);
    }
  }
}

// How many columns to take at a time, of all rows of a strip: few enough to stay in the nearest cache,
// but all of them where they are taken in an order.
int Matrix::stretch(const StripCodes& codes) const {
  constexpr int kStretch = 256;
  return column_order_.empty() && kStretch % codes.block() == 0 ? kStretch : columns_;
}

void Matrix::pack_quads(const StripCodes& source, int strip) {
  const int columns = std::min(stretch(source), columns_);
  // Room for whole blocks and quads, whatever ends last.
  const std::size_t room = round_up(source.padded(columns), kRun);
  std::vector<std::int8_t> codes(kStrip * room);
  for (int first = 0; first < columns_; first += columns) {
    const int count = std::min(columns, columns_ - first);
    read_strip(source, strip, first, count, codes.data(), room);
    pack_stretch(strip, first, count, codes.data(), room);
  }
}

// Columns [first, first + count) of a strip's rows to [lanes][room], zeros behind them.
void Matrix::read_strip(const StripCodes& source, int strip, int first, int count,
                        std::int8_t* codes, std::size_t room) const {
  const int lanes = std::min(kStrip, rows_ - strip * kStrip);
  for (int lane = 0; lane < lanes; ++lane, codes += room) {
    source.read(lane, first, count, codes);
    std::fill(codes + count, codes + room, std::int8_t{0});
    if (column_order_.empty()) continue;
    const std::vector<std::int8_t> natural(codes, codes + count);  // a whole row, then
    for (int k = 0; k < count; ++k) codes[k] = natural[column_order_[k]];
  }
}

namespace {

// A quad of each lane: four codes in bytes, or eight in the halves of bytes. In two's complement of so
// many bits, adding the bias turns the sign bit over.
template <bool kPairs>
void pack_lanes(const std::int8_t* codes, std::size_t room, int lanes, std::uint32_t bias,
                std::uint8_t* to) {
  for (int lane = 0; lane < lanes; ++lane, codes += room, to += sizeof bias) {
    std::uint32_t quad;
    std::memcpy(&quad, codes, sizeof quad);
    if constexpr (kPairs) {
      std::uint32_t high;
      std::memcpy(&high, codes + 4, sizeof high);
      quad = ((quad & 0x0F0F0F0FU) ^ bias) | ((high & 0x0F0F0F0FU) ^ bias) << 4;
    } else {
      quad ^= bias;
    }
    std::memcpy(to, &quad, sizeof quad);
  }
}

}  // namespace

void Matrix::pack_stretch(int strip, int first, int count, const std::int8_t* codes,
                          std::size_t room) {
  const int lanes = std::min(kStrip, rows_ - strip * kStrip);
  const bool pairs = codes_type_ == Codes::int4;
  const std::uint32_t bias = 0x01010101U * static_cast<std::uint32_t>(quad_bias());
  const int columns = pairs ? 8 : 4;  // of one quad
  std::uint8_t* to = codes_.data() + strip * strip_bytes_ + first / columns * 4 * kStrip;
  for (int k = 0; k < count; k += columns, to += 4 * kStrip) {
    if (pairs) {
      pack_lanes<true>(codes + k, room, lanes, bias, to);
    } else {
      pack_lanes<false>(codes + k, room, lanes, bias, to);
    }
  }
}

void Matrix::pack_groups(const CodesSource& source, int strip) {
  const int lanes = std::min(kStrip, rows_ - strip * kStrip);
  const int groups = static_cast<int>(group_starts_.size()) - 1;
  const std::size_t start = static_cast<std::size_t>(strip) * kStrip * groups;
  const auto bytes = [&](const std::int8_t* from, const Memory<std::int8_t>& to) {
    if (from != nullptr)
      transpose_strip(from + start, groups, 1, lanes, groups, to.data() + start);
  };
  bytes(source.zero_point, zero_points_);
  bytes(source.sub_scale, sub_scales_);
  bytes(source.sub_minimum, sub_minimums_);
  const int outer = groups >> nesting_;
  transpose_strip(source.scale, strip, lanes, outer, scales_.data());
  if (!minimums_.empty()) transpose_strip(source.minimum, strip, lanes, outer, minimums_.data());
}

}  // namespace coldpress
