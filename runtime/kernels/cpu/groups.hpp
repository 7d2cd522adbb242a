// Scales, zero points and minimums of the groups of a packed matrix, for one vector of channels.
#pragma once

#include "simd.hpp"

namespace coldpress::COLDPRESS_ISA {

// How codes of one group become weights.
struct GroupNumbers {
  Vec scale;
  Vec shift;
};

// The factor that a group shares with its neighbours, times its own.
inline GroupNumbers nested_numbers(const MatrixView& m, std::size_t index) {
  const std::size_t outer = (index / kStrip >> m.nesting) * kStrip + index % kStrip;
  GroupNumbers group{load_number(m.scale_type, m.scales, outer), splat(0.0F)};
  group.scale = mul(group.scale, load_int8(m.sub_scales + index));
  if (m.minimums != nullptr)
    group.shift = mul(load_number(m.minimum_type, m.minimums, outer),
                      load_int8(m.sub_minimums + index));
  return group;
}

// shift: the zero points, or else the minimums.
inline GroupNumbers plain_numbers(const MatrixView& m, std::size_t index) {
  GroupNumbers group{load_number(m.scale_type, m.scales, index), splat(0.0F)};
  if (m.zero_points != nullptr) group.shift = load_int8(m.zero_points + index);
  if (m.minimums != nullptr) group.shift = load_number(m.minimum_type, m.minimums, index);
  return group;
}

// Of either; index: (strip * groups + group) * kStrip + channel. Nested ones are kept out of line, so
// that the loops of the others keep their registers.
__attribute__((noinline)) static GroupNumbers nested_numbers_apart(const MatrixView& m,
                                                                   std::size_t index) {
  return nested_numbers(m, index);
}
inline GroupNumbers group_numbers(const MatrixView& m, std::size_t index) {
  return m.sub_scales != nullptr ? nested_numbers_apart(m, index) : plain_numbers(m, index);
}

}  // namespace coldpress::COLDPRESS_ISA
