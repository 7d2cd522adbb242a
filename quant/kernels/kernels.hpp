// What the loops of rounding read and write. All arrays are float32, row-major and contiguous.
//
// Kernel files use plain data and no library templates, so that no function compiled for a newer
// processor can be shared by the linker with code that must run on an older one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace coldpress::rounding {

// Columns that are rounded between two products with the rest of the matrix.
constexpr int kMaxColumns = 128;

// The integers from lowest to highest.
struct Levels {
  float lowest = 0.0F;
  float highest = 0.0F;
};

// Scales and zero points [groups, rows]; group_of [columns] says which group a column belongs to.
struct Grids {
  const float* scale = nullptr;
  const float* zero = nullptr;
  const std::int32_t* group_of = nullptr;
};

// A chunk of columns, [columns, rows]: rows are independent of each other.
//
// mixing [columns, columns]: row j holds what the columns before j add to it, and a diagonal.
struct Chunk {
  std::size_t rows = 0;
  int columns = 0;
  Grids grids;
  const float* mixing = nullptr;
  Levels to;
};

// Stored scales keep `kept` bits of a float32's 23 and lie within [smallest, largest].
struct ScaleType {
  int kept = 23;
  float smallest = 0.0F;
  float largest = 0.0F;
};

struct Search {
  std::size_t rows = 0;
  int groups = 0;
  int size = 0;                       // columns of a group
  const float* weight = nullptr;      // [rows, groups * size]
  const float* importance = nullptr;  // [groups * size]
  Levels to;
  ScaleType stored;
  bool symmetric = true;
  bool mirrored = false;              // negative scales, too
  float lowest_zero = 0.0F;           // the smallest zero point, counted from the lowest level
  const double* shrinks = nullptr;    // [steps], the first of them 1
  int steps = 0;
  int refits = 0;
};

struct KernelTable {
  const char* name;
  // left: the weights as they stand. Writes levels, and errors divided by mixing's diagonal.
  void (*feedback)(const Chunk& chunk, const float* left, float* levels, float* errors);
  // gradient: (W - Q) H as it stands. Moves `levels`, and writes by how much values changed.
  void (*sweep)(const Chunk& chunk, const float* gradient, float* levels, float* changes);
  // buffer: room for 2 * kWidest * size floats. Writes scale and zero, [rows, groups].
  void (*search)(const Search& search, float* buffer, float* scale, float* zero);
};

// Numbers of the widest vector.
constexpr std::size_t kWidest = 16;

}  // namespace coldpress::rounding
