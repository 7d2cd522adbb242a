// The sequential part of GPTQ and of coordinate descent: one column after the other, many rows at
// once. What earlier columns of the chunk add to a column is summed when that column's turn comes,
// in their order, so that a tile of rows stays in registers and in the first-level cache.
#include "../format/native/vector.hpp"
#include "kernels.hpp"

namespace coldpress::rounding::COLDPRESS_ISA {

namespace {

using namespace coldpress::vectors::COLDPRESS_ISA;

constexpr int kVecs = 4;
constexpr std::size_t kTile = kVecs * kLanes;

// What was done to each column of the chunk so far, of one tile of rows.
struct alignas(64) Trail {
  float at[kMaxColumns][kTile];
};

// Lanes of vector v that lie within `count` rows of a tile.
COLDPRESS_INLINE std::size_t part(std::size_t count, int v) {
  const std::size_t before = v * kLanes;
  return count > before ? count - before : 0;
}

COLDPRESS_INLINE void add_trail(const float* mixing, int columns, const Trail& trail, Vec* x) {
  for (int i = 0; i < columns; ++i) {
    const Vec share = splat(mixing[i]);
    for (int v = 0; v < kVecs; ++v) x[v] -= share * load(&trail.at[i][v * kLanes]);
  }
}

void feedback_tile(const Chunk& c, std::size_t row, std::size_t count, const float* left,
                   float* levels, float* errors) {
  Trail trail;
  const Vec lowest = splat(c.to.lowest), highest = splat(c.to.highest);
  for (int j = 0; j < c.columns; ++j) {
    const float* mixing = c.mixing + static_cast<std::size_t>(j) * c.columns;
    const std::size_t at = j * c.rows + row, grid = c.grids.group_of[j] * c.rows + row;
    Vec x[kVecs];
    for (int v = 0; v < kVecs; ++v) x[v] = load_part(left + at + v * kLanes, part(count, v), 0.0F);
    add_trail(mixing, j, trail, x);
    for (int v = 0; v < kVecs; ++v) {
      const std::size_t lane = v * kLanes, lanes = part(count, v);
      const Vec scale = load_part(c.grids.scale + grid + lane, lanes, 1.0F);
      const Vec zero = load_part(c.grids.zero + grid + lane, lanes, 0.0F);
      const Vec level = snap(x[v] / scale + zero, lowest, highest);
      const Vec error = (x[v] - (level - zero) * scale) / splat(mixing[j]);
      store(&trail.at[j][lane], error);
      store_part(levels + at + lane, lanes, level);
      store_part(errors + at + lane, lanes, error);
    }
  }
}

void sweep_tile(const Chunk& c, std::size_t row, std::size_t count, const float* gradient,
                float* levels, float* changes) {
  Trail trail;
  const Vec lowest = splat(c.to.lowest), highest = splat(c.to.highest);
  for (int j = 0; j < c.columns; ++j) {
    const float* mixing = c.mixing + static_cast<std::size_t>(j) * c.columns;
    const std::size_t at = j * c.rows + row, grid = c.grids.group_of[j] * c.rows + row;
    const Vec curvature = splat(mixing[j] > 0.0F ? mixing[j] : 1.0F);
    Vec g[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      g[v] = load_part(gradient + at + v * kLanes, part(count, v), 0.0F);
    }
    add_trail(mixing, j, trail, g);
    for (int v = 0; v < kVecs; ++v) {
      const std::size_t lane = v * kLanes, lanes = part(count, v);
      const Vec scale = load_part(c.grids.scale + grid + lane, lanes, 1.0F);
      const Vec zero = load_part(c.grids.zero + grid + lane, lanes, 0.0F);
      const Vec level = load_part(levels + at + lane, lanes, 0.0F);
      const Vec wanted = (level - zero) * scale + g[v] / curvature;
      const Vec moved = snap(wanted / scale + zero, lowest, highest);
      const Vec change = (moved - level) * scale;
      store(&trail.at[j][lane], change);
      store_part(levels + at + lane, lanes, moved);
      store_part(changes + at + lane, lanes, change);
    }
  }
}

}  // namespace

void feedback(const Chunk& chunk, const float* left, float* levels, float* errors) {
  for (std::size_t row = 0; row < chunk.rows; row += kTile) {
    feedback_tile(chunk, row, chunk.rows - row, left, levels, errors);
  }
}

void sweep(const Chunk& chunk, const float* gradient, float* levels, float* changes) {
  for (std::size_t row = 0; row < chunk.rows; row += kTile) {
    sweep_tile(chunk, row, chunk.rows - row, gradient, levels, changes);
  }
}

}  // namespace coldpress::rounding::COLDPRESS_ISA
