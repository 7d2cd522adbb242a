// The Attend op: this step's keys and values go to their slots, then every token looks back.
#include <algorithm>

#include "plan.hpp"

namespace coldpress {

namespace {

// Where a head's keys and values lie.
struct HeadPlace {
  const AttentionView& view;
  std::size_t at;
  template <class Stored>
  Stored* of(void* first) const {
    return static_cast<Stored*>(static_cast<void*>(static_cast<char*>(first) + at));
  }
};

// One head's key and value at their slot of a page.
template <int group, class Stored>
void put_head(const HeadPlace& place, int slot, const Stored* k, const Stored* v) {
  const AttentionView& view = place.view;
  auto* key = place.of<Stored>(view.keys) + group * slot;
  for (int d = 0; d < view.head_dim; d += group, key += group * view.key_stride)
    for (int i = 0; i < group && d + i < view.head_dim; ++i) key[i] = k[d + i];
  auto* value = place.of<Stored>(view.values) +
                static_cast<std::size_t>(slot / group * group) * view.value_stride + slot % group;
  for (int d = 0; d < view.head_dim; ++d) value[group * d] = v[d];
}

bool has_single_tokens(const Batch& batch) {
  for (int s = 0; s < batch.sequences; ++s)
    if (batch.query_starts[s + 1] - batch.query_starts[s] > 1) return false;
  return true;
}

}  // namespace

int Plan::add_cache(int kv_heads, int head_dim, CacheNumber number) {
  caches_.push_back({kv_heads, head_dim, number});
  return static_cast<int>(caches_.size()) - 1;
}

const std::int32_t* Plan::pages_of(const Batch& batch, int token) const {
  return batch.page_table + static_cast<std::size_t>(sequence_of_[token]) * batch.pages;
}

void Plan::store_head(const AttentionView& view, const Batch& batch, int token, int kv_head,
                      const float* k, const float* v) const {
  const int position = batch.positions[token];
  const std::size_t page = pages_of(batch, token)[position / page_size_];
  const HeadPlace head{view, view.head_at(page, kv_head)};
  const int slot = position % page_size_;
  const int n = view.head_dim;
  k += static_cast<std::size_t>(kv_head) * n;
  v += static_cast<std::size_t>(kv_head) * n;
  std::uint16_t halves[2][kLargestHead];
  std::int8_t codes[2][kLargestHead];
  switch (view.number) {
    case CacheNumber::float32: put_head<1>(head, slot, k, v); break;
    case CacheNumber::float16:
      kernels_.narrow(k, n, halves[0]);
      kernels_.narrow(v, n, halves[1]);
      put_head<1>(head, slot, halves[0], halves[1]);
      break;
    case CacheNumber::bfloat16:
      kernels_.narrow_bfloat16(k, n, halves[0]);
      kernels_.narrow_bfloat16(v, n, halves[1]);
      put_head<2>(head, slot, halves[0], halves[1]);
      break;
    case CacheNumber::int8:
      head.of<float>(view.key_scales)[slot] = kernels_.narrow_int8(k, n, codes[0]);
      head.of<float>(view.value_scales)[slot] = kernels_.narrow_int8(v, n, codes[1]);
      put_head<4>(head, slot, codes[0], codes[1]);
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

// Rows that read the same keys and values: a run's, of query heads that share a head of those.
struct Plan::Queries {
  QueryRow rows[kQueryRows];
  int count = 0;
  const std::int32_t* pages;
  int kv_head;
  int token;      // the first
  int first = 0;  // stretch, and the last one, that any of the rows sees
  int last = 0;
};

// The last tokens have the longest way back: they come first, so that no thread ends alone.
Plan::Queries Plan::queries_of(const AttentionView& view, const Batch& batch, BufferId q,
                               BufferId out, int piece) const {
  const int shared = view.heads / view.kv_heads;
  const int blocks = (shared + kQueryRows - 1) / kQueryRows;
  const int run = static_cast<int>(run_starts_.size()) - 2 - piece / (view.kv_heads * blocks);
  const int block = piece % blocks;
  Queries found;
  found.kv_head = piece / blocks % view.kv_heads;
  found.token = run_starts_[run];
  found.pages = pages_of(batch, found.token);
  const int stretch = stretch_pages(page_size_) * page_size_;
  int begin = batch.positions[run_starts_[run]];
  int end = 0;
  for (int t = run_starts_[run]; t < run_starts_[run + 1]; ++t) {
    const int seen = batch.positions[t] + 1;
    const int from = view.window != 0 && seen > view.window ? seen - view.window : 0;
    begin = std::min(begin, from);
    end = std::max(end, seen);
    for (int h = block * kQueryRows; h < std::min(shared, (block + 1) * kQueryRows); ++h) {
      const std::size_t at = static_cast<std::size_t>(found.kv_head * shared + h) * view.head_dim;
      found.rows[found.count++] = {buffers_[q].row(t) + at, buffers_[out].row(t) + at, from, seen};
    }
  }
  found.first = begin / stretch;
  found.last = (end - 1) / stretch;
  return found;
}

// Where the keys begin that a piece reads first, page by page.
Plan::FirstKeys Plan::first_keys(const AttentionView& view, const Batch& batch, int piece) const {
  FirstKeys found{};
  const int blocks = (view.heads / view.kv_heads + kQueryRows - 1) / kQueryRows;
  const int run = static_cast<int>(run_starts_.size()) - 2 - piece / (view.kv_heads * blocks);
  if (run < 0) return found;
  const int token = run_starts_[run];
  const int seen = batch.positions[token] + 1;
  const int from = view.window != 0 && seen > view.window ? seen - view.window : 0;
  for (int i = 0; i < kAfter; ++i) {
    const int index = std::min(from / page_size_ + i, (seen - 1) / page_size_);
    const std::size_t page = pages_of(batch, token)[index];
    const std::size_t head = piece / blocks % view.kv_heads;
    found.pages[i] = static_cast<const char*>(view.keys) + view.head_at(page, head);
  }
  return found;
}

void Plan::attend_whole(const AttentionView& view, const Queries& queries,
                        const void* const* after,
                        float* scratch) const {
  const std::size_t parts = kQueryRows * part_size(view.value_stride);
  float* sums = scratch;
  float* next = sums + parts;
  float* room = next + parts;
  for (int s = queries.first; s <= queries.last; ++s) {
    kernels_.attend(view, queries.rows, queries.count, queries.pages, queries.kv_head, s, after,
                    room, s == queries.first ? sums : next);
    if (s != queries.first) kernels_.join(view, queries.count, next, sums);
  }
  kernels_.finish(view, queries.rows, queries.count, sums);
}

// Threads share the stretches; joining them in order gives the bits that attend_whole gives.
void Plan::attend_split(const AttentionView& view, const Batch& batch, BufferId q, BufferId out,
                        int pieces, int stretches) {
  const std::size_t parts = kQueryRows * part_size(view.value_stride);
  const std::size_t wanted = static_cast<std::size_t>(pieces) * stretches * parts;
  if (parts_.size() < wanted) parts_ = Memory<float>(wanted);
  const auto part = [&](int piece, int stretch) {
    return parts_.data() + (static_cast<std::size_t>(piece) * stretches + stretch) * parts;
  };
  pool_->run(pieces * stretches, [&](int i, int thread) {
    const int s = i % stretches;
    const Queries queries = queries_of(view, batch, q, out, i / stretches);
    if (s < queries.first || s > queries.last) return;
    kernels_.attend(view, queries.rows, queries.count, queries.pages, queries.kv_head, s,
                    nullptr, scratch_[thread].data(), part(i / stretches, s));
  });
  pool_->run(pieces, [&](int piece, int) {
    const Queries queries = queries_of(view, batch, q, out, piece);
    float* sums = part(piece, queries.first);
    for (int s = queries.first + 1; s <= queries.last; ++s)
      kernels_.join(view, queries.count, part(piece, s), sums);
    kernels_.finish(view, queries.rows, queries.count, sums);
  });
}

void Plan::add_attend(BufferId out, BufferId q, BufferId k, BufferId v, int cache_id,
                      AttentionView view) {
  add_op("attention", [this, out, q, k, v, cache_id, view](const Batch& batch) mutable {
    if (batch.tokens == 0) return;
    const Cache& cache = caches_[cache_id];
    view.number = cache.number;
    std::uint8_t* first = cached_.data() + cache.start;
    view.keys = first;
    view.values = first + cache.values;
    view.key_scales = reinterpret_cast<float*>(first + cache.key_scales);
    view.value_scales = reinterpret_cast<float*>(first + cache.value_scales);
    view.head_bytes = cache.head_bytes;
    view.page_bytes = page_bytes_;
    view.page_size = page_size_;
    view.key_stride = static_cast<int>(round_up(page_size_, kPad));
    view.value_stride = static_cast<int>(round_up(cache.head_dim, kPad));
    const int shared = view.heads / view.kv_heads;
    const int blocks = (shared + kQueryRows - 1) / kQueryRows;
    split_sequences(batch, std::max(1, kQueryRows / shared));
    const int runs = static_cast<int>(run_starts_.size()) - 1;
    const int pieces = runs * view.kv_heads * blocks;
    const int furthest = *std::max_element(batch.positions, batch.positions + batch.tokens);
    const int stretches = furthest / (stretch_pages(page_size_) * page_size_) + 1;
    const auto store = [&](int token, int head) {
      store_head(view, batch, token, head, buffers_[k].row(token), buffers_[v].row(token));
    };
    constexpr int kFew = 4;  // pieces for each thread; with more, none is alone for long
    const bool splits = stretches > 1 && pool_->size() > 1 && pieces < kFew * pool_->size();
    // A piece that alone reads what it stores needs to wait for nobody.
    const bool alone = !splits && blocks == 1 && has_single_tokens(batch);
    if (!alone)
      for_rows(batch.tokens, 4 * buffers_[k].stride, [&](int token) {
        for (int head = 0; head < view.kv_heads; ++head) store(token, head);
      });
    if (splits) return attend_split(view, batch, q, out, pieces, stretches);
    pool_->run(pieces, [&](int piece, int thread) {
      const Queries queries = queries_of(view, batch, q, out, piece);
      if (alone) store(queries.token, queries.kv_head);
      const FirstKeys after = first_keys(view, batch, piece + 1);
      attend_whole(view, queries, after.pages[0] == nullptr ? nullptr : after.pages,
                   scratch_[thread].data());
    });
  });
}

}  // namespace coldpress
