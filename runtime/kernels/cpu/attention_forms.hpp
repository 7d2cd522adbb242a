// How attention multiplies what the cache holds: by floats, or by numbers of its own kind.
//
// Stored: what the cache holds. Factor: what queries and weights become. kGroup: elements of a head
// (of keys) or positions (of values) that lie side by side, and of which one lane takes a group.
#pragma once

#include "simd_integer.hpp"
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
  static constexpr bool kBytes = false;
  static Loaded load_group(const Stored* p) { return load_floats(p); }
  // Zeros but for what is in [from, to) of its group.
  static Loaded only_some(int, int, Loaded a) { return a; }
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
  static Loaded only_some(int from, int, Loaded a) {
    return from == 0 ? Loaded{a.first, splat(0.0F)} : Loaded{splat(0.0F), a.second};
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
  static constexpr bool kBytes = false;
  static Loaded load_group(const Stored* p) { return load_pairs(&p->bits); }
  static Loaded only_some(int from, int, Loaded a) {
    return only(from == 0 ? Half::first : Half::second, a);
  }
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

// Four integers to a lane, with a scale for each position, by floats.
struct WideQuads : Floats<float> {
  using Stored = Int8;
  struct Loaded {
    Vec of[4];
  };
  using Splat = Loaded;
  static constexpr int kGroup = 4;
  static constexpr bool kScaled = true;
  static Loaded load_group(const Stored* p) {
    const Integers quads = load_codes(p);
    return {{to_floats(code_of<0>(quads)), to_floats(code_of<1>(quads)),
             to_floats(code_of<2>(quads)), to_floats(code_of<3>(quads))}};
  }
  // Codes are always numbers, and weights of what is not seen are zeros.
  static Loaded only_some(int, int, Loaded a) { return a; }
  static Splat splat_group(const Factor* p) {
    return {{splat(p[0]), splat(p[1]), splat(p[2]), splat(p[3])}};
  }
  static Vec multiply(Vec sum, Loaded a, Splat b) {
    for (int i = 0; i < kGroup; ++i) sum = fma(a.of[i], b.of[i], sum);
    return sum;
  }
};

// The same by integers of sixteen bits, in two pieces of eight: attention_bytes.hpp.
struct ByteProducts : WideQuads {
  static constexpr bool kBytes = true;
};

}  // namespace coldpress::COLDPRESS_ISA
