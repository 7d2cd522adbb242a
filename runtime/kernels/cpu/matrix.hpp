// A weight in the layout that the kernels stream; made once, when a model is loaded.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "file_rows.hpp"
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
  PackedRows packed;                              // they are in there,
  std::shared_ptr<const FileRows> file;           // and that still in here
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
};

// The codes of one strip, wherever they come from.
class StripCodes {
 public:
  // read: the strip's bytes, where the source is a file; else nullptr.
  StripCodes(const CodesSource& source, int columns, int strip, const std::uint8_t* read);

  // Columns [first, first + count) of a row of the strip; a block begins at `first`. `to` has room for
  // whole blocks.
  void read(int lane, int first, int count, std::int8_t* to) const;
  // Codes that so many columns take with their last block, and how many are of one block.
  std::size_t padded(std::size_t columns) const;
  int block() const { return codes_ != nullptr ? 1 : packed_.block; }

 private:
  const std::int8_t* codes_ = nullptr;
  int columns_;
  std::size_t first_row_;
  PackedRows packed_;
};

// Columns that integer products take at a time, so that all of them are of one group; 0 where groups
// do not allow it.
int quad_step_of(const std::vector<std::int32_t>& group_starts);

class Matrix {
 public:
  // numbers: [rows, columns]. Throws std::runtime_error where a file ends early.
  Matrix(int rows, int columns, Numbers numbers, ThreadPool& pool);
  Matrix(int rows, int columns, Number type, const FileRows& file, ThreadPool& pool);
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
  Matrix(int rows, int columns, Numbers numbers, const FileRows* file, ThreadPool& pool);
  // pack(bytes of the file's rows, strip) for every strip; nullptr where there is no file.
  template <class F>
  void pack_strips(ThreadPool& pool, const FileRows* file, F&& pack);
  void pack_codes(const StripCodes& codes, int strip);
  void pack_quads(const StripCodes& codes, int strip);
  int stretch(const StripCodes& codes) const;
  void read_strip(const StripCodes& source, int strip, int first, int count, std::int8_t* codes,
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
