// A weight in the layout that the kernels stream; made once, when a model is loaded.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "memory.hpp"
#include "packed_rows.hpp"
#include "read_ahead.hpp"
#include "thread_pool.hpp"

namespace coldpress {

// Floating-point numbers of one of three types, as they lie in someone else's matrix: so many numbers
// from one row to the next, and from one column to the next.
struct Numbers {
  Number type = Number::float32;
  const void* data = nullptr;  // nullptr: none
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t stride = 1;
};

// float32 value of element `index`, where they lie without gaps.
float read_number(Numbers numbers, std::size_t index);

// Codes are integers of two's complement (with minimums: unsigned), or stand for the 16 values of a
// table, or are e4m3 floats.
struct CodesSource {
  Codes type = Codes::int8;
  const std::int8_t* codes = nullptr;             // [rows, columns]; or
  PackedRows packed;                              // they are in there
  std::vector<float> table;                       // [16], or empty
  Numbers scale;                                  // [rows, groups]
  float divisor = 1.0F;                           // of every scale
  const std::int8_t* zero_point = nullptr;        // [rows, groups]
  Numbers minimum;                                // [rows, groups]
  int nesting = 0;                                // 2 ** nesting groups share scale and minimum
  const std::int8_t* sub_scale = nullptr;         // [rows, groups], where nested
  const std::int8_t* sub_minimum = nullptr;       // [rows, groups]
  std::vector<std::int32_t> group_starts;         // [groups + 1]
  std::vector<std::int32_t> column_order;         // [columns]: packed column k is this one; or empty
  bool quads = false;                             // for integer products; see quad_step_of

  // int8 [columns] of one row, which lie there or are read into `scratch`.
  const std::int8_t* row(std::size_t row, int columns, std::vector<std::int8_t>& scratch) const;
};

// Columns that integer products take at a time, so that all of them are of one group; 0 where groups
// do not allow it.
int quad_step_of(const std::vector<std::int32_t>& group_starts);

class Matrix {
 public:
  // numbers: [rows, columns].
  Matrix(int rows, int columns, Numbers numbers, ThreadPool& pool);
  Matrix(int rows, int columns, CodesSource source, ThreadPool& pool);

  int rows() const { return rows_; }
  int columns() const { return columns_; }
  int strips() const { return (rows_ + kStrip - 1) / kStrip; }
  std::size_t bytes() const;
  // The order in which the kernels want x's columns; empty where it is the natural one.
  const std::vector<std::int32_t>& column_order() const { return column_order_; }
  // Whether it is laid out for integer products, which then are the only ones that it can be in.
  bool in_quads() const { return quad_step_ > 0; }
  MatrixView view() const;
  // What a product reads of it, the smallest arrays first.
  std::vector<ReadAhead::Span> spans() const;
  // float32 [columns], in the natural order.
  void dequantize_row(int row, float* out) const;

 private:
  void pack_numbers(const Numbers& numbers, int strip);
  void pack_codes(const CodesSource& source, int strip);
  void pack_quads(const CodesSource& source, int strip);
  int stretch(const PackedRows& packed) const;
  void read_strip(const CodesSource& source, int strip, int first, int count, std::int8_t* codes,
                  std::size_t room) const;
  void pack_stretch(int strip, int first, int count, const std::int8_t* codes, std::size_t room);
  void pack_groups(const CodesSource& source, int strip);
  float number_at(Number type, const Memory<std::uint8_t>& numbers,
                  const Memory<std::int8_t>& factors, std::size_t strip, int group, int lane) const;
  float code_at(std::size_t strip, int column, int lane) const;
  float quad_at(std::size_t strip, int column, int lane) const;
  int quad_bias() const;

  int rows_;
  int columns_;
  Codes codes_type_;
  Number number_ = Number::float32;
  bool unsigned_codes_ = false;
  int quad_step_ = 0;
  std::vector<float> table_;
  float divisor_ = 1.0F;
  std::size_t strip_bytes_;
  Memory<std::uint8_t> codes_;
  std::vector<std::int32_t> group_starts_;
  std::vector<std::int32_t> column_order_;
  Number scale_type_ = Number::float32;
  Memory<std::uint8_t> scales_;
  Memory<std::int8_t> zero_points_;
  Number minimum_type_ = Number::float32;
  Memory<std::uint8_t> minimums_;
  int nesting_ = 0;
  Memory<std::int8_t> sub_scales_;
  Memory<std::int8_t> sub_minimums_;
};

}  // namespace coldpress
