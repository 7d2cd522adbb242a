// How attention multiplies what the cache holds: by floats, or pairs of bfloat16 by such pairs.
//
// Stored: what the cache holds. Factor: what queries and weights become. kGroup: elements of a head
// (of keys) or positions (of values) that lie side by side, and of which one lane takes a group.
#pragma once

#include "simd_pairs.hpp"

namespace coldpress::COLDPRESS_ISA {

template <class T>
struct Floats {
  using Stored = T;
  using Factor = float;
  using Loaded = Vec;
  using Splat = Vec;
  using Mode = int;
  static constexpr int kGroup = 1;
  static constexpr bool kScaled = false;
  static Loaded load_group(const Stored* p) { return load_floats(p); }
  static Loaded only_half(Half, Loaded a) { return a; }
  static Splat splat_group(const Factor* p) { return splat(*p); }
  static Vec multiply(Vec sum, Loaded a, Splat b) { return fma(a, b, sum); }
  // 2 * kLanes factors of as many numbers.
  static void put(Factor* to, Vec a, Vec b) {
    store(to, a);
    store(to + kLanes, b);
  }
  // The same of weights, which join `total` as they are put.
  static Vec put_weights(Vec total, Factor* to, Vec a, Vec b) {
    put(to, a, b);
    return add(add(total, a), b);
  }
};

// Integers, with a scale for each position.
struct Integers8 : Floats<Int8> {
  static constexpr bool kScaled = true;
};

// Pairs as they are, by floats.
struct WidePairs : Floats<float> {
  using Stored = Bfloat16;
  struct Loaded {
    Vec first;
    Vec second;
  };
  using Splat = Loaded;
  static constexpr int kGroup = 2;
  static Loaded load_group(const Stored* p) {
    const Pairs pairs = load_pairs(&p->bits);
    return {first_of(pairs), second_of(pairs)};
  }
  static Loaded only_half(Half half, Loaded a) {
    return half == Half::first ? Loaded{a.first, splat(0.0F)} : Loaded{splat(0.0F), a.second};
  }
  static Splat splat_group(const Factor* p) { return {splat(p[0]), splat(p[1])}; }
  static Vec multiply(Vec sum, Loaded a, Splat b) {
    return fma(a.first, b.first, fma(a.second, b.second, sum));
  }
};

struct PairProducts {
  using Stored = Bfloat16;
  using Factor = std::uint16_t;
  using Loaded = Pairs;
  using Splat = Pairs;
  using Mode = NoSubnormals;
  static constexpr int kGroup = 2;
  static constexpr bool kScaled = false;
  static Loaded load_group(const Stored* p) { return load_pairs(&p->bits); }
  static Loaded only_half(Half half, Loaded a) { return only(half, a); }
  static Splat splat_group(const Factor* p) {
    std::uint32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return splat_pair(pair);
  }
  static Vec multiply(Vec sum, Loaded a, Splat b) { return dot_pairs(sum, a, b); }
  static void put(Factor* to, Vec a, Vec b) { store_pairs(to, narrow_pairs(a, b)); }
  static Vec put_weights(Vec total, Factor* to, Vec a, Vec b) {
    const Pairs pairs = narrow_pairs(a, b);
    store_pairs(to, pairs);
    return dot_pairs(total, pairs, splat_pair(0x3F803F80U));  // ones
  }
};

}  // namespace coldpress::COLDPRESS_ISA
