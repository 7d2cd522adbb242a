// What a kernel reads and which kernels an instruction set provides.
//
// Every kernel file is compiled once per instruction set, in a namespace of its own. Those files
// use plain data and no library templates, so that no function compiled for a newer processor can
// be shared by the linker with code that must run on an older one.
#pragma once

#include <cstddef>
#include <cstdint>

namespace coldpress {

// Output channels that lie side by side in a packed matrix.
constexpr int kStrip = 64;
// Input columns that are expanded to float32 at a time: the panel stays in the first-level cache.
constexpr int kPanel = 64;
// Every row of a step buffer, and every cached head, is padded to a multiple of this many floats.
constexpr int kPad = 16;
// Columns of a rounded row that share a scale, and those of which the sum of codes is kept.
constexpr int kRun = 32;
constexpr int kSumRun = 16;

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

enum class Number : std::uint8_t { float32, float16, bfloat16 };
// table: 4-bit codes of any 16 values. e4m3: 8-bit floats.
enum class Codes : std::uint8_t { int4, int8, table, e4m3, number };

// A packed weight [rows, columns]: strips of kStrip rows, each [columns][kStrip].
//
// int4, table: byte (k / 2, row) holds column k in its low and k + 1 in its high half; int4 as
// code + bias. Columns of one group are adjacent: those of group g start at group_starts[g].
// In quads (quad_step > 0), integers lie as integer products read them: columns are padded to a
// multiple of kRun, a strip is [columns / 4][kStrip][4] of bytes, each code + quad_bias; of int4 it
// is [columns / 8][kStrip][4], with column k in the low and k + 4 in the high half of a byte. All
// quad_step columns from a multiple of quad_step on are of one group.
//
// scales, zero_points and minimums are [strip][group][kStrip]; scales are divided by `divisor`.
// Nested ones: a scale is shared by 2 ** nesting neighbouring groups, and each multiplies it by a
// sub-scale of its own, [strip][group][kStrip] (and minimums likewise).
struct MatrixView {
  int rows = 0;
  int columns = 0;
  Codes codes_type = Codes::number;
  Number number = Number::float32;
  const std::uint8_t* codes = nullptr;
  std::size_t strip_bytes = 0;
  float bias = 0.0F;
  const float* table = nullptr;  // [16]
  float divisor = 1.0F;
  int groups = 0;
  const std::int32_t* group_starts = nullptr;
  Number scale_type = Number::float32;
  const void* scales = nullptr;
  const std::int8_t* zero_points = nullptr;
  Number minimum_type = Number::float32;
  const void* minimums = nullptr;
  int nesting = 0;
  const std::int8_t* sub_scales = nullptr;  // nullptr: not nested
  const std::int8_t* sub_minimums = nullptr;
  int quad_step = 0;  // 0, kSumRun or kRun
  int quad_bias = 0;
};

// Rows rounded to int8: value = code * scale. Columns are padded with zeros to a multiple of kRun.
struct RoundedRows {
  const std::int8_t* codes = nullptr;  // [rows][stride]
  std::size_t stride = 0;
  const float* scales = nullptr;      // [rows][stride / kRun]
  const std::int32_t* sums = nullptr;  // of codes, [rows][stride / kSumRun]

  RoundedRows from(std::size_t row) const {
    return {codes + row * stride, stride, scales + row * (stride / kRun),
            sums + row * (stride / kSumRun)};
  }
};

// What cached keys and values are held in; int8 with a scale for each head of each token.
enum class CacheNumber : std::uint8_t { float32, float16, bfloat16, int8 };
constexpr std::size_t width_of(CacheNumber number) {  // bytes
  return number == CacheNumber::float32 ? 4 : number == CacheNumber::int8 ? 1 : 2;
}
// Elements of a key, and positions of an element of a value, that lie side by side.
constexpr int group_of(CacheNumber number) {
  return number == CacheNumber::bfloat16 ? 2 : number == CacheNumber::int8 ? 4 : 1;
}

// One layer's keys and values, and how they are attended to.
//
// Of a page and a head, head_at() bytes behind the first of each:
// keys: [head_dim][key_stride], so that a vector holds one element of many keys.
// values: [page_size][value_stride]. Their scales: [key_stride].
// With a group_of() beyond 1 they are [head_dim / group][key_stride][group] and
// [page_size / group][value_stride][group], rounded up.
struct AttentionView {
  CacheNumber number = CacheNumber::float32;
  bool rounded = false;  // queries and weights, as what they multiply is
  void* keys = nullptr;
  void* values = nullptr;
  float* key_scales = nullptr;  // of int8
  float* value_scales = nullptr;
  std::size_t page_bytes = 0;  // from a page to the next
  std::size_t head_bytes = 0;  // and from a head of it to the next
  int page_size = 0;
  int key_stride = 0;
  int value_stride = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  float scale = 1.0F;
  float softcap = 0.0F;  // 0: none
  int window = 0;        // 0: all

  std::size_t head_at(std::size_t page, std::size_t head) const {
    return page * page_bytes + head * head_bytes;
  }
};

// One query head of one token: it sees the positions [begin, end).
struct QueryRow {
  const float* q;
  float* out;
  int begin;
  int end;
};

enum class Activation : std::uint8_t { silu, gelu_tanh };

enum class Levels : std::uint8_t { int8, e4m3, e2m1 };
enum class Scales : std::uint8_t { number, e8m0, e4m3 };

// How a row is rounded; compile.input_rounding.InputRounding.
struct Rounding {
  Levels levels = Levels::int8;
  Scales scales = Scales::number;
  int group = 0;         // columns that share a scale; 0: the whole row
  float fixed = 0.0F;    // the scale of every row; 0: made from the row
  float divisor = 1.0F;  // of e4m3 scales
  float span = 127.5F;   // of int8: the largest magnitude is this many scales
};

// How a token is drawn from a row; runtime.engine.batch.PlainDraw.
struct DrawOptions {
  float temperature;
  int top_k;  // 0: all
  float top_p;
  float min_p;
  double uniform;
};

struct KernelTable {
  const char* name;
  // out[rows, strip] = x[rows, columns] @ strip.T + bias; panel: (kPanel + 1) * kStrip floats.
  void (*linear)(const MatrixView& m, int strip, const float* x, std::size_t x_stride, int rows,
                 const float* bias, float* out, std::size_t out_stride, float* panel);
  // What up to kQueryRows rows of one sequence that read the same `kv_head` see of a stretch, into
  // their parts; after: kAfter pieces of memory that are to be read when they have seen all, or
  // nullptr; scratch: attend_scratch() floats.
  void (*attend)(const AttentionView& view, const QueryRow* rows, int count,
                 const std::int32_t* pages, int kv_head, int stretch, const void* const* after,
                 float* scratch, float* parts);
  // Adds what rows saw of the next stretch to what they saw before it.
  void (*join)(const AttentionView& view, int count, const float* next, float* parts);
  // Parts of all that rows see become their results.
  void (*finish)(const AttentionView& view, const QueryRow* rows, int count, const float* parts);
  // The nearest float16, the largest for what is beyond.
  void (*narrow)(const float* x, int n, std::uint16_t* out);
  // The nearest bfloat16, 0 for what is below the normal numbers.
  void (*narrow_bfloat16)(const float* x, int n, std::uint16_t* out);
  // The nearest of 255 multiples of the scale that is returned, which is the largest magnitude
  // / 127, but never below the normal numbers; NaN where a number is not finite.
  float (*narrow_int8)(const float* x, int n, std::int8_t* out);
  void (*rms_norm)(const float* x, const float* weight, int runs, int size, float eps, float* out);
  void (*gated_act)(const float* gate, const float* up, std::size_t n, Activation activation,
                    float* out);
  void (*softcap)(float* x, std::size_t n, float cap);
  void (*add)(const float* a, const float* b, std::size_t n, float* out);
  // Turns `heads` heads by the angles of one position; half: pairs that turn, the rest is copied.
  void (*rope)(const float* x, const float* cosines, const float* sines, int heads, int head_dim,
               int half, float* out);
  void (*round_row)(const float* x, int n, const Rounding& rounding, float* out);
  // The same to int8 codes; a group is the whole row or a multiple of kRun columns. `n` codes, a
  // scale for each kRun of them and a sum for each kSumRun; what pads the row is left alone.
  void (*quantize_row)(const float* x, int n, const Rounding& rounding, std::int8_t* codes,
                       float* scales, std::int32_t* sums);
  // out[rows, strip] = x[rows, columns] @ strip.T + bias, of a matrix in quads; rows > 0.
  void (*linear_int8)(const MatrixView& m, int strip, const RoundedRows& x, int rows,
                      const float* bias, float* out, std::size_t out_stride);
  // The index of the largest of n > 0 numbers, the first of equal ones; of the first NaN if there is
  // one.
  int (*argmax)(const float* x, int n);
  // A token of a row whose largest number is finite. values, ids: room for n each.
  int (*draw)(const float* row, int n, const DrawOptions& options, float* values,
              std::int32_t* ids);
  // Products of vectors of bytes, over and over; how many operations they were.
  std::int64_t (*multiply_bytes)(int rounds, std::uint32_t* left);
  // Reads `bytes` bytes, a multiple of kProbedBytes, and does next to nothing with them.
  std::uint32_t (*read_bytes)(const void* memory, std::size_t bytes);
};

// Bytes that `read_bytes` takes at a time, whatever the vectors.
constexpr std::size_t kProbedBytes = 1024;

// Rows that one pass over the pages serves.
constexpr int kQueryRows = 24;
// What attention asks for before it has seen all that it reads: pages of keys.
constexpr int kAfter = 4;
// Elements of a head whose keys and values are narrowed.
constexpr int kLargestHead = 1024;

// Positions that are summed on their own, whoever sums them: the pages that this many positions
// fill. Sums of one after the other are joined in order, so threads may take one each.
constexpr int kStretch = 256;

inline int stretch_pages(int page_size) { return page_size < kStretch ? kStretch / page_size : 1; }

// A row's part: its mixed values [value_stride], the largest score, the sum of weights, padding.
inline std::size_t part_size(int value_stride) { return value_stride + kPad; }

// What attend() works in: pointers to vectors of keys and to pages of values, and the queries and
// scores of as many rows as share loads.
constexpr int kNarrowest = 4;  // lanes of a vector
constexpr int kTileRows = 6;
inline std::size_t list_vectors(int page_size, int key_stride) {
  return static_cast<std::size_t>(stretch_pages(page_size)) * key_stride / kNarrowest + kPad;
}
inline std::size_t list_size(int page_size, int key_stride) {
  const std::size_t entries =
      list_vectors(page_size, key_stride) + stretch_pages(page_size) + kAfter;
  return round_up(entries * sizeof(void*) / sizeof(float), kPad);
}
inline std::size_t query_size(int head_dim) { return round_up(head_dim, 2 * kPad); }
inline std::size_t score_size(int page_size, int key_stride) {
  return round_up(static_cast<std::size_t>(stretch_pages(page_size)) * key_stride, 2 * kPad);
}
inline std::size_t attend_scratch(int page_size, int key_stride, int head_dim) {
  return list_size(page_size, key_stride) +
         kTileRows * (query_size(head_dim) + score_size(page_size, key_stride));
}

// `name` is "auto", "avx512", "avx2" or "portable"; nullptr where this processor lacks it.
const KernelTable* find_kernels(const char* name);

}  // namespace coldpress
