// The Attend op: this step's keys and values go to their slots, then every token looks back.
#include <algorithm>

#include "plan.hpp"

namespace coldpress {

namespace {

// One head's key and value at their slot of a page.
template <class Stored>
void store_head(const AttentionView& view, std::size_t head, int slot, const Stored* k,
                const Stored* v) {
  Stored* key = static_cast<Stored*>(view.keys) + head * view.head_dim * view.key_stride + slot;
  for (int d = 0; d < view.head_dim; ++d) key[d * view.key_stride] = k[d];
  std::copy_n(v, view.head_dim,
              static_cast<Stored*>(view.values) +
                  (head * view.page_size + slot) * view.value_stride);
}

}  // namespace

int Plan::add_cache(int kv_heads, int head_dim, Number number) {
  caches_.push_back({kv_heads, head_dim, number, {}, {}});
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
  std::uint16_t halves[2][kLargestHead];
  for (int h = 0; h < cache.kv_heads; ++h, k += cache.head_dim, v += cache.head_dim) {
    const std::size_t head = page * cache.kv_heads + h;
    if (cache.number == Number::float32) {
      store_head(view, head, slot, k, v);
      continue;
    }
    kernels_.narrow(k, cache.head_dim, halves[0]);
    kernels_.narrow(v, cache.head_dim, halves[1]);
    store_head(view, head, slot, halves[0], halves[1]);
  }
}

// Neighbouring tokens of one sequence, at most `most` of them, form a run.
void Plan::split_sequences(const Batch& batch, int most) {
  run_starts_.clear();
  for (int s = 0; s < batch.sequences; ++s)
    for (int t = batch.query_starts[s]; t < batch.query_starts[s + 1]; t += most)
      run_starts_.push_back(t);
  run_starts_.push_back(batch.tokens);
}

void Plan::attend_run(const AttentionView& view, const Batch& batch, BufferId q, BufferId out,
                      int first, int last, int kv_head, float* scratch) const {
  const int shared = view.heads / view.kv_heads;
  const std::int32_t* pages = pages_of(batch, first);
  QueryRow rows[kQueryRows];
  int count = 0;
  for (int t = first; t < last; ++t) {
    const int end = batch.positions[t] + 1;
    const int begin = view.window != 0 && end > view.window ? end - view.window : 0;
    for (int h = 0; h < shared; ++h) {
      const std::size_t at = static_cast<std::size_t>(kv_head * shared + h) * view.head_dim;
      rows[count++] = {buffers_[q].row(t) + at, buffers_[out].row(t) + at, begin, end};
      if (count < kQueryRows) continue;
      kernels_.attend(view, rows, count, pages, kv_head, scratch);
      count = 0;
    }
  }
  if (count > 0) kernels_.attend(view, rows, count, pages, kv_head, scratch);
}

void Plan::add_attend(BufferId out, BufferId q, BufferId k, BufferId v, int cache_id,
                      AttentionView view) {
  add_op("attention", [this, out, q, k, v, cache_id, view](const Batch& batch) mutable {
    const Cache& cache = caches_[cache_id];
    view.number = cache.number;
    view.keys = cache.keys.data();
    view.values = cache.values.data();
    view.page_size = page_size_;
    view.key_stride = static_cast<int>(round_up(page_size_, kPad));
    view.value_stride = static_cast<int>(round_up(cache.head_dim, kPad));
    for_rows(batch.tokens, 4 * buffers_[k].stride, [&](int t) {
      store_token(cache, view, batch, t, buffers_[k].row(t), buffers_[v].row(t));
    });
    const int shared = view.heads / view.kv_heads;
    const int run = std::max(1, kQueryRows / shared);
    split_sequences(batch, run);
    // The last tokens have the longest way back: they go first, so that no thread ends alone.
    const int runs = static_cast<int>(run_starts_.size()) - 1;
    pool_->run(runs * view.kv_heads, [&](int piece, int thread) {
      const int at = runs - 1 - piece / view.kv_heads;
      attend_run(view, batch, q, out, run_starts_[at], run_starts_[at + 1], piece % view.kv_heads,
                 scratch_[thread].data());
    });
  });
}

}  // namespace coldpress
