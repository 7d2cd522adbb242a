// A packed weight as its kernels see it, and as its numbers.
#include "matrix.hpp"

#include <algorithm>
#include <cstring>

namespace coldpress {

namespace {

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

}  // namespace

float read_number(Numbers numbers, std::size_t index) {
  if (numbers.type == Number::float32) return static_cast<const float*>(numbers.data)[index];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(numbers.data)[index];
  if (numbers.type == Number::float16) return from_float16(bits);
  return from_bits(static_cast<std::uint32_t>(bits) << 16);
}

int Matrix::quad_bias() const {
  if (unsigned_codes_) return 0;
  return codes_type_ == Codes::int4 ? 8 : 128;
}

float Matrix::quad_at(std::size_t strip, int column, int lane) const {
  const std::uint8_t* codes = codes_.data() + strip * strip_bytes_;
  const bool pairs = codes_type_ == Codes::int4;
  const std::size_t quad = column / (pairs ? 8 : 4);
  const int byte = codes[quad * 4 * kStrip + 4 * lane + column % 4];
  if (!pairs) return static_cast<float>(byte - quad_bias());
  return static_cast<float>((column % 8 < 4 ? byte & 15 : byte >> 4) - quad_bias());
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
