// What the search for scales of ggml's blocks reads and writes: row-major, contiguous, float32.
//
// Every step is that of the NumPy implementation in the tests, in the same order, so that both
// give the same bits. Kernel files use plain data and no library templates, as in quant/kernels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace coldpress::blocks {

constexpr int kCodebook = 16;   // levels of a codebook
constexpr int kMaxGroups = 16;  // groups of a block

// A number type. Blocks are `per_block` groups of `group` elements.
struct Kind {
  int group = 0;
  int per_block = 1;
  float lowest = 0.0F;   // levels
  float highest = 0.0F;
  const float* levels = nullptr;  // [16] rising: of a codebook; null for whole numbers
  bool minimum = false;
  bool nested = false;
  float nested_lowest = 0.0F;
  float nested_highest = 0.0F;
};

// What is tried. tries [count, 2]: reaches of the largest magnitude, or with a minimum the step and
// the start as shares of the range. ends: what the largest nested scale is tried at.
struct Effort {
  const float* tries = nullptr;
  int count = 0;
  int rounds = 0;
  const float* nudges = nullptr;
  int nudge_count = 0;
  const float* ends = nullptr;
  int end_count = 0;
  int nest_rounds = 0;
};

struct Search {
  Kind kind;
  Effort effort;
  std::size_t blocks = 0;
  std::size_t blocks_per_row = 0;
  const float* weight = nullptr;         // [blocks, block]
  const float* importance = nullptr;     // [blocks of a row, block]; null: all alike
  const float* known_scale = nullptr;    // [blocks, groups]; null: nothing is known
  const float* known_minimum = nullptr;
  float* d = nullptr;                    // [blocks]
  float* m = nullptr;
  float* sub_scales = nullptr;           // [blocks, groups]
  float* sub_minimums = nullptr;
  std::int8_t* codes = nullptr;          // [blocks, block]; null: not wanted
};

struct KernelTable {
  const char* name;
  // buffer: room for 2 * kWidest * block floats.
  void (*search)(const Search& search, float* buffer);
};

// Numbers of the widest vector.
constexpr std::size_t kWidest = 16;

}  // namespace coldpress::blocks
