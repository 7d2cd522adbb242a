#include "matrix.hpp"

#include <algorithm>
#include <cstring>

namespace coldpress {

namespace {

std::size_t width(Number type) { return type == Number::float32 ? 4 : 2; }

float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float from_float16(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t magnitude = half & 0x7FFFU;
  if (magnitude >= 0x7C00U) return from_bits(sign | 0x7F800000U | ((magnitude & 0x3FFU) << 13));
  // The multiplication moves the exponent bias from 15 to 127, subnormal numbers included.
  const float value = from_bits(magnitude << 13) * from_bits(0x77800000U);
  return sign != 0 ? -value : value;
}

float from_e4m3(std::uint8_t byte) {
  const std::uint32_t sign = static_cast<std::uint32_t>(byte & 0x80U) << 24;
  const float value = from_float16(static_cast<std::uint16_t>((byte & 0x7FU) << 7)) * 256.0F;
  return sign != 0 ? -value : value;
}

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

float read_number(Numbers numbers, std::size_t index) {
  if (numbers.type == Number::float32) return static_cast<const float*>(numbers.data)[index];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(numbers.data)[index];
  if (numbers.type == Number::float16) return from_float16(bits);
  return from_bits(static_cast<std::uint32_t>(bits) << 16);
}

const std::int8_t* CodesSource::row(std::size_t row, int columns,
                                    std::vector<std::int8_t>& scratch) const {
  if (codes != nullptr) return codes + row * columns;
  scratch.resize(packed.padded(columns));
  packed.read(row, 0, columns, scratch.data());
  return scratch.data();
}

Matrix::Matrix(int rows, int columns, Numbers numbers, ThreadPool& pool)
    : rows_(rows), columns_(columns), codes_type_(Codes::number), number_(numbers.type) {
  strip_bytes_ = static_cast<std::size_t>(columns) * kStrip * width(number_);
  codes_ = Memory<std::uint8_t>(strips() * strip_bytes_, Streamed{});
  pool.run(strips(), [&](int strip, int) { pack_numbers(numbers, strip); });
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
  pool.run(strips(), [&](int strip, int) {
    in_quads() ? pack_quads(source, strip) : pack_codes(source, strip);
    pack_groups(source, strip);
  });
}

void Matrix::pack_numbers(const Numbers& numbers, int strip) {
  const int lanes = std::min(kStrip, rows_ - strip * kStrip);
  transpose_strip(numbers, strip, lanes, columns_, codes_.data());
}

void Matrix::pack_codes(const CodesSource& source, int strip) {
  std::uint8_t* to = codes_.data() + strip * strip_bytes_;
  const int lanes = std::min(kStrip, rows_ - strip * kStrip);
  const std::uint8_t bias = codes_type_ == Codes::int4 && !unsigned_codes_ ? 8 : 0;
  std::vector<std::int8_t> scratch;
  for (int lane = 0; lane < lanes; ++lane) {
    const std::int8_t* row =
        source.row(static_cast<std::size_t>(strip) * kStrip + lane, columns_, scratch);
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

int Matrix::quad_bias() const {
  if (unsigned_codes_) return 0;
  return codes_type_ == Codes::int4 ? 8 : 128;
}

// How many columns to take at a time, of all rows of a strip: few enough to stay in the nearest cache,
// but all of them where they are taken in an order.
int Matrix::stretch(const PackedRows& packed) const {
  constexpr int kStretch = 256;
  return column_order_.empty() && kStretch % packed.block == 0 ? kStretch : columns_;
}

void Matrix::pack_quads(const CodesSource& source, int strip) {
  const int columns = std::min(stretch(source.packed), columns_);
  // Room for whole blocks and quads, whatever ends last.
  const std::size_t room = round_up(source.packed.padded(columns), kRun);
  std::vector<std::int8_t> codes(kStrip * room);
  for (int first = 0; first < columns_; first += columns) {
    const int count = std::min(columns, columns_ - first);
    read_strip(source, strip, first, count, codes.data(), room);
    pack_stretch(strip, first, count, codes.data(), room);
  }
}

// Columns [first, first + count) of a strip's rows to [lanes][room], zeros behind them.
void Matrix::read_strip(const CodesSource& source, int strip, int first, int count,
                        std::int8_t* codes, std::size_t room) const {
  const int lanes = std::min(kStrip, rows_ - strip * kStrip);
  for (int lane = 0; lane < lanes; ++lane, codes += room) {
    const std::size_t row = static_cast<std::size_t>(strip) * kStrip + lane;
    if (source.codes == nullptr) {
      source.packed.read(row, first, count, codes);
    } else {
      std::copy_n(source.codes + row * columns_ + first, count, codes);
    }
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

float Matrix::quad_at(std::size_t strip, int column, int lane) const {
  const std::uint8_t* codes = codes_.data() + strip * strip_bytes_;
  const bool pairs = codes_type_ == Codes::int4;
  const std::size_t quad = column / (pairs ? 8 : 4);
  const int byte = codes[quad * 4 * kStrip + 4 * lane + column % 4];
  if (!pairs) return static_cast<float>(byte - quad_bias());
  return static_cast<float>((column % 8 < 4 ? byte & 15 : byte >> 4) - quad_bias());
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

std::size_t Matrix::bytes() const {
  return codes_.bytes() + scales_.bytes() + zero_points_.bytes() + minimums_.bytes() +
         sub_scales_.bytes() + sub_minimums_.bytes();
}

std::vector<ReadAhead::Span> Matrix::spans() const {
  std::vector<ReadAhead::Span> spans;
  const auto add = [&](const auto& memory) {
    if (!memory.empty()) spans.push_back({memory.data(), memory.bytes()});
  };
  add(sub_minimums_);
  add(sub_scales_);
  add(zero_points_);
  add(minimums_);
  add(scales_);
  add(codes_);
  return spans;
}

MatrixView Matrix::view() const {
  MatrixView view;
  view.rows = rows_;
  view.columns = columns_;
  view.codes_type = codes_type_;
  view.number = number_;
  view.codes = codes_.data();
  view.strip_bytes = strip_bytes_;
  view.bias = unsigned_codes_ ? 0.0F : 8.0F;
  view.table = table_.data();
  view.divisor = divisor_;
  view.groups = group_starts_.empty() ? 0 : static_cast<int>(group_starts_.size()) - 1;
  view.group_starts = group_starts_.data();
  view.scale_type = scale_type_;
  view.scales = scales_.data();
  view.zero_points = zero_points_.empty() ? nullptr : zero_points_.data();
  view.minimum_type = minimum_type_;
  view.minimums = minimums_.empty() ? nullptr : minimums_.data();
  view.nesting = nesting_;
  view.quad_step = quad_step_;
  view.quad_bias = quad_bias();
  view.sub_scales = sub_scales_.empty() ? nullptr : sub_scales_.data();
  view.sub_minimums = sub_minimums_.empty() ? nullptr : sub_minimums_.data();
  return view;
}

float Matrix::number_at(Number type, const Memory<std::uint8_t>& numbers,
                        const Memory<std::int8_t>& factors, std::size_t strip, int group,
                        int lane) const {
  const std::size_t groups = group_starts_.size() - 1;
  const std::size_t outer = strip * (groups >> nesting_) + (group >> nesting_);
  const float number = read_number({type, numbers.data()}, outer * kStrip + lane);
  if (factors.empty()) return number;
  return number * static_cast<float>(factors.data()[(strip * groups + group) * kStrip + lane]);
}

float Matrix::code_at(std::size_t strip, int column, int lane) const {
  if (in_quads()) return quad_at(strip, column, lane);
  const std::uint8_t* codes = codes_.data() + strip * strip_bytes_;
  const std::size_t at = static_cast<std::size_t>(column) * kStrip + lane;
  if (codes_type_ == Codes::number) return read_number({number_, codes}, at);
  if (codes_type_ == Codes::int8) return static_cast<float>(static_cast<std::int8_t>(codes[at]));
  if (codes_type_ == Codes::e4m3) return from_e4m3(codes[at]);
  const int pair = codes[static_cast<std::size_t>(column / 2) * kStrip + lane];
  const int nibble = column % 2 == 0 ? pair & 15 : pair >> 4;
  if (codes_type_ == Codes::table) return table_[nibble];
  return static_cast<float>(nibble - (unsigned_codes_ ? 0 : 8));
}

void Matrix::dequantize_row(int row, float* out) const {
  const std::size_t strip = row / kStrip;
  const int lane = row % kStrip;
  if (codes_type_ == Codes::number) {
    for (int k = 0; k < columns_; ++k) out[k] = code_at(strip, k, lane);
    return;
  }
  const std::size_t groups = group_starts_.size() - 1;
  for (int group = 0; group < static_cast<int>(groups); ++group) {
    const std::size_t at = (strip * groups + group) * kStrip + lane;
    const float scale = number_at(scale_type_, scales_, sub_scales_, strip, group, lane) / divisor_;
    const float zero = zero_points_.empty() ? 0.0F : zero_points_.data()[at];
    const float minimum =
        minimums_.empty() ? 0.0F
                          : number_at(minimum_type_, minimums_, sub_minimums_, strip, group, lane);
    for (int k = group_starts_[group]; k < group_starts_[group + 1]; ++k) {
      const float value = (code_at(strip, k, lane) - zero) * scale;
      out[column_order_.empty() ? k : column_order_[k]] =
          minimums_.empty() ? value : value + minimum;
    }
  }
}

}  // namespace coldpress
