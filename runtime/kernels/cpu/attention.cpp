// Attention of one token over its pages (online softmax: Milakov & Gimelshein 2018).
//
// Pages are visited in order and every sum runs over positions in order, so a token's result
// depends on its own position and nothing else of the step.
#include "simd.hpp"

namespace coldpress::COLDPRESS_ISA {

constexpr float kInfinity = __builtin_inff();

// Positions [from, to) of a page are visible; scores: [heads][key_stride].
template <int heads>
inline void score_page(const AttentionView& view, const float* q, const float* keys, int from,
                       int to, float* scores) {
  for (int j = from / kLanes * kLanes; j < to; j += kLanes) {
    Vec sums[heads];
    for (int h = 0; h < heads; ++h) sums[h] = splat(0.0F);
    for (int d = 0; d < view.head_dim; ++d) {
      const Vec key = load(keys + static_cast<std::size_t>(d) * view.key_stride + j);
      for (int h = 0; h < heads; ++h)
        sums[h] = fma(key, splat(q[h * view.head_dim + d]), sums[h]);
    }
    for (int h = 0; h < heads; ++h) {
      Vec score = mul(sums[h], splat(view.scale));
      if (view.softcap != 0.0F)
        score = mul(splat(view.softcap), tanh(div(score, splat(view.softcap))));
      store(scores + h * view.key_stride + j, score);
    }
  }
}

struct Softmax {
  float most = -kInfinity;
  float total = 0.0F;
};

// Turns one head's scores into weights; returns what earlier pages' sums are multiplied by.
inline float weigh_page(float* scores, int from, int to, Softmax& state) {
  const int first = from / kLanes * kLanes;
  for (int j = first; j < from; ++j) scores[j] = -kInfinity;
  for (int j = to; j % kLanes != 0; ++j) scores[j] = -kInfinity;
  Vec most = splat(state.most);
  for (int j = first; j < to; j += kLanes) most = max(most, load(scores + j));
  const float next = max_lanes(most);
  Vec sum = splat(0.0F);
  for (int j = first; j < to; j += kLanes) {
    const Vec weight = exp(sub(load(scores + j), splat(next)));
    store(scores + j, weight);
    sum = add(sum, weight);
  }
  float keep[kLanes];
  store(keep, exp(splat(state.most - next)));
  state.most = next;
  state.total = state.total * keep[0] + sum_lanes(sum);
  return keep[0];
}

template <int heads>
inline void mix_page(const AttentionView& view, const float* values, const float* weights,
                     const float* keep, int from, int to, float* mixed) {
  for (int d = 0; d < view.value_stride; d += kLanes) {
    Vec sums[heads];
    for (int h = 0; h < heads; ++h)
      sums[h] = mul(load(mixed + h * view.value_stride + d), splat(keep[h]));
    for (int j = from; j < to; ++j) {
      const Vec value = load(values + static_cast<std::size_t>(j) * view.value_stride + d);
      for (int h = 0; h < heads; ++h)
        sums[h] = fma(value, splat(weights[h * view.key_stride + j]), sums[h]);
    }
    for (int h = 0; h < heads; ++h) store(mixed + h * view.value_stride + d, sums[h]);
  }
}

template <int heads>
void attend_heads(const AttentionView& view, const float* q, int position,
                  const std::int32_t* pages, int kv_head, float* out, float* scratch) {
  float* scores = scratch;
  float* mixed = scratch + heads * view.key_stride;
  std::memset(mixed, 0, sizeof(float) * heads * view.value_stride);
  Softmax state[heads];
  const int end = position + 1;
  const int begin = view.window != 0 && end > view.window ? end - view.window : 0;
  for (int page = begin / view.page_size; page * view.page_size < end; ++page) {
    const int base = page * view.page_size;
    const int from = begin > base ? begin - base : 0;
    const int to = end - base < view.page_size ? end - base : view.page_size;
    const std::size_t head = static_cast<std::size_t>(pages[page]) * view.kv_heads + kv_head;
    score_page<heads>(view, q, view.keys + head * view.head_dim * view.key_stride, from, to,
                      scores);
    float keep[heads];
    for (int h = 0; h < heads; ++h)
      keep[h] = weigh_page(scores + h * view.key_stride, from, to, state[h]);
    mix_page<heads>(view, view.values + head * view.page_size * view.value_stride, scores, keep,
                    from, to, mixed);
  }
  for (int h = 0; h < heads; ++h)
    for (int d = 0; d < view.head_dim; ++d)
      out[h * view.head_dim + d] = mixed[h * view.value_stride + d] / state[h].total;
}

void attend(const AttentionView& view, const float* q, int position, const std::int32_t* pages,
            int kv_head, float* out, float* scratch) {
  const int shared = view.heads / view.kv_heads;
  for (int h = 0; h < shared; h += kHeadBlock) {
    const std::size_t at = static_cast<std::size_t>(kv_head * shared + h) * view.head_dim;
    const int left = shared - h;
    const auto run = left >= 4   ? attend_heads<4>
                     : left == 3 ? attend_heads<3>
                     : left == 2 ? attend_heads<2>
                                 : attend_heads<1>;
    run(view, q + at, position, pages, kv_head, out + at, scratch);
  }
}

}  // namespace coldpress::COLDPRESS_ISA
