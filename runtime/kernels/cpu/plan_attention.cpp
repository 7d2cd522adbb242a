// The Attend op: this step's keys and values go to their slots, then every token looks back.
#include <algorithm>

#include "plan.hpp"

namespace coldpress {

int Plan::add_cache(int kv_heads, int head_dim) {
  caches_.push_back({kv_heads, head_dim, {}, {}});
  return static_cast<int>(caches_.size()) - 1;
}

const std::int32_t* Plan::pages_of(const Batch& batch, int token) const {
  return batch.page_table + static_cast<std::size_t>(sequence_of_[token]) * batch.pages;
}

void Plan::store_token(const Cache& cache, const AttentionView& view, const Batch& batch, int token,
                       const float* k, const float* v) const {
  const int position = batch.positions[token];
  const std::size_t page = pages_of(batch, token)[position / page_size_];
  const int slot = position % page_size_;
  for (int h = 0; h < cache.kv_heads; ++h, k += cache.head_dim, v += cache.head_dim) {
    const std::size_t head = page * cache.kv_heads + h;
    float* key = view.keys + head * cache.head_dim * view.key_stride + slot;
    for (int d = 0; d < cache.head_dim; ++d) key[d * view.key_stride] = k[d];
    std::copy_n(v, cache.head_dim,
                view.values + (head * page_size_ + slot) * view.value_stride);
  }
}

void Plan::add_attend(BufferId out, BufferId q, BufferId k, BufferId v, int cache_id,
                      AttentionView view) {
  ops_.push_back([this, out, q, k, v, cache_id, view](const Batch& batch) mutable {
    const Cache& cache = caches_[cache_id];
    view.keys = cache.keys.data();
    view.values = cache.values.data();
    view.page_size = page_size_;
    view.key_stride = static_cast<int>(round_up(page_size_, kPad));
    view.value_stride = static_cast<int>(round_up(cache.head_dim, kPad));
    for_rows(batch.tokens, 4 * buffers_[k].stride, [&](int t) {
      store_token(cache, view, batch, t, buffers_[k].row(t), buffers_[v].row(t));
    });
    // The last tokens have the longest way back: they go first, so that no thread ends alone.
    pool_->run(batch.tokens * view.kv_heads, [&](int piece, int thread) {
      const int token = batch.tokens - 1 - piece / view.kv_heads;
      kernels_.attend(view, buffers_[q].row(token), batch.positions[token], pages_of(batch, token),
                      piece % view.kv_heads, buffers_[out].row(token), scratch_[thread].data());
    });
  });
}

}  // namespace coldpress
