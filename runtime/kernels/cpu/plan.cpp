#include "plan.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace coldpress {

namespace {

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("malformed step: ") + what);
}

}  // namespace

Plan::Plan(std::shared_ptr<ThreadPool> pool, const KernelTable& kernels)
    : pool_(std::move(pool)),
      kernels_(kernels),
      scratch_(pool_->size()),
      scratch_size_(static_cast<std::size_t>(kPanel + 1) * kStrip) {}

Plan::BufferId Plan::add_buffer(int width, bool selected, bool routed) {
  buffers_.push_back({width, round_up(width, kStrip), selected, routed, 0, {}});
  return static_cast<BufferId>(buffers_.size()) - 1;
}

int Plan::add_rope_table(std::vector<double> frequencies, double attention_factor) {
  rope_tables_.push_back({std::move(frequencies), attention_factor, {}, {}});
  return static_cast<int>(rope_tables_.size()) - 1;
}

Plan::Rows Plan::rows_like(BufferId id) const {
  return {buffers_[id].selected, buffers_[id].routed};
}

int Plan::count(const Batch& batch, Rows rows) const {
  if (rows.routed) return static_cast<int>(routes_[expert_].rows.size());
  return rows.selected ? batch.selected : batch.tokens;
}

void Plan::add_embed(BufferId out, std::shared_ptr<const Matrix> table, float scale) {
  const std::size_t cost = 8 * static_cast<std::size_t>(table->columns());
  add_row_op("embed", rows_like(out), cost, [this, out, table, scale](const Batch& batch, int t) {
    float* row = buffers_[out].row(t);
    table->dequantize_row(batch.token_ids[t], row);
    if (scale == 1.0F) return;
    for (int i = 0; i < buffers_[out].width; ++i) row[i] *= scale;
  });
}

void Plan::add_slice(BufferId out, BufferId x, int start) {
  if (start < 0 || start + buffers_[out].width > buffers_[x].width)
    throw std::invalid_argument("a slice reaches beyond its source");
  const std::size_t cost = buffers_[out].stride;
  add_row_op("slice", rows_like(out), cost, [this, out, x, start](const Batch&, int row) {
    std::copy_n(buffers_[x].row(row) + start, buffers_[out].width, buffers_[out].row(row));
  });
}

void Plan::add_rms_norm(BufferId out, BufferId x, std::vector<float> weight, float eps) {
  const int size = static_cast<int>(weight.size());
  const int runs = buffers_[x].width / size;
  add_row_op("norm", rows_like(out), buffers_[x].width,
             [this, out, x, weight = std::move(weight), size, runs, eps](const Batch&, int row) {
               kernels_.rms_norm(buffers_[x].row(row), weight.data(), runs, size, eps,
                                 buffers_[out].row(row));
             });
}

void Plan::add_gather(BufferId out, BufferId x, std::shared_ptr<const Matrix> matrix) {
  const std::size_t cost = matrix->column_order().size();
  add_row_op("gather", rows_like(out), cost, [this, out, x, matrix](const Batch&, int row) {
    const std::vector<std::int32_t>& order = matrix->column_order();
    const float* from = buffers_[x].row(row);
    float* to = buffers_[out].row(row);
    for (std::size_t k = 0; k < order.size(); ++k) to[k] = from[order[k]];
  });
}

void Plan::add_round(BufferId out, BufferId x, Rounding rounding) {
  const std::size_t cost = 2 * buffers_[x].stride;
  add_row_op("round", rows_like(out), cost, [this, out, x, rounding](const Batch&, int row) {
    kernels_.round_row(buffers_[x].row(row), buffers_[x].width, rounding, buffers_[out].row(row));
  });
}

void Plan::add_rope(BufferId out, BufferId x, int heads, int head_dim, int table) {
  const std::size_t cost = buffers_[x].width;
  add_row_op("rope", rows_like(out), cost,
             [this, out, x, heads, head_dim, table](const Batch&, int t) {
               const RopeTable& rope = rope_tables_[table];
               const std::size_t half = rope.frequencies.size();
               kernels_.rope(buffers_[x].row(t), rope.cosines.data() + t * half,
                             rope.sines.data() + t * half, heads, head_dim, static_cast<int>(half),
                             buffers_[out].row(t));
             });
}

void Plan::add_gated_act(BufferId out, BufferId gate, BufferId up, Activation activation) {
  const std::size_t cost = 4 * buffers_[out].stride;
  add_row_op("activation", rows_like(out), cost,
             [this, out, gate, up, activation](const Batch&, int row) {
               kernels_.gated_act(buffers_[gate].row(row), buffers_[up].row(row),
                                  buffers_[out].stride, activation, buffers_[out].row(row));
             });
}

void Plan::add_add(BufferId out, BufferId a, BufferId b) {
  const std::size_t cost = buffers_[out].stride;
  add_row_op("add", rows_like(out), cost, [this, out, a, b](const Batch&, int row) {
    kernels_.add(buffers_[a].row(row), buffers_[b].row(row), buffers_[out].stride,
                 buffers_[out].row(row));
  });
}

void Plan::add_select_rows(BufferId out, BufferId x) {
  add_op("select", [this, out, x](const Batch& batch) {
    for (int r = 0; r < batch.selected; ++r)
      std::copy_n(buffers_[x].row(batch.logit_rows[r]), buffers_[x].width, buffers_[out].row(r));
  });
}

void Plan::add_softcap(BufferId x, float cap) {
  const std::size_t cost = 8 * buffers_[x].stride;
  add_row_op("softcap", rows_like(x), cost, [this, x, cap](const Batch&, int row) {
    kernels_.softcap(buffers_[x].row(row), buffers_[x].stride, cap);
  });
}

void Plan::add_argmax(BufferId x) {
  const std::size_t cost = buffers_[x].stride;
  add_row_op("argmax", rows_like(x), cost, [this, x](const Batch&, int row) {
    best_[row] = kernels_.argmax(buffers_[x].row(row), buffers_[x].width);
  });
}

// What a head of a page holds, one after the other.
void Plan::lay_out(Cache& cache) const {
  const std::size_t width = width_of(cache.number);
  const std::size_t slots = round_up(page_size_, kPad);
  const std::size_t scales = cache.number == CacheNumber::int8 ? slots * sizeof(float) : 0;
  const int group = group_of(cache.number);
  cache.key_scales = width * round_up(cache.head_dim, group) * slots;
  cache.values = cache.key_scales + scales;
  cache.value_scales =
      cache.values + width * round_up(page_size_, group) * round_up(cache.head_dim, kPad);
  cache.head_bytes = cache.value_scales + scales;
}

void Plan::allocate(int num_pages, int page_size, int tokens, int vocab_size) {
  give_back_freed();  // weights are packed by now
  num_pages_ = num_pages;
  page_size_ = page_size;
  vocab_size_ = vocab_size;
  page_bytes_ = 0;
  for (Cache& cache : caches_) {
    lay_out(cache);
    cache.start = page_bytes_;
    page_bytes_ += cache.kv_heads * cache.head_bytes;
    const int value_stride = static_cast<int>(round_up(cache.head_dim, kPad));
    const std::size_t attend =
        2 * kQueryRows * part_size(value_stride) +
        attend_scratch(page_size, static_cast<int>(round_up(page_size, kPad)), cache.head_dim);
    scratch_size_ = std::max(scratch_size_, attend);
  }
  cached_ = Memory<std::uint8_t>(num_pages * page_bytes_, Streamed{});
  for (Memory<float>& scratch : scratch_) scratch = Memory<float>(scratch_size_);
  lay_out_stream();
  reserve(tokens, 1);
}

std::size_t Plan::cache_bytes() const { return cached_.bytes(); }

void Plan::reserve(int tokens, int selected) {
  for (Buffer& buffer : buffers_) {
    const int rows = buffer.selected ? selected : tokens;
    if (rows <= buffer.capacity) continue;
    buffer.data = Memory<float>(rows * buffer.stride);
    buffer.capacity = rows;
  }
  for (RoundedBuffer& buffer : rounded_) {
    const int rows = buffer.selected ? selected : tokens;
    if (rows <= buffer.capacity) continue;
    buffer.codes = Memory<std::int8_t>(rows * buffer.stride);
    buffer.scales = Memory<float>(rows * (buffer.stride / kRun));
    buffer.sums = Memory<std::int32_t>(rows * (buffer.stride / kSumRun));
    buffer.capacity = rows;
  }
}

void Plan::check(const Batch& batch) const {
  require(num_pages_ > 0, "the plan has no pool yet");
  require(batch.query_starts[0] == 0 && batch.query_starts[batch.sequences] == batch.tokens,
          "query_starts do not cover the tokens");
  for (int s = 0; s < batch.sequences; ++s) {
    const int first = batch.query_starts[s];
    const int end = batch.query_starts[s + 1];
    require(first <= end && end <= batch.tokens, "query_starts are not ascending");
    int last = -1;
    for (int t = first; t < end; ++t) {
      require(batch.positions[t] >= 0, "a position is negative");
      require(batch.token_ids[t] >= 0 && batch.token_ids[t] < vocab_size_,
              "a token id is outside the vocabulary");
      last = std::max(last, batch.positions[t]);
    }
    require(last < 0 || last / page_size_ < batch.pages, "a position has no page");
    for (int p = 0; last >= 0 && p <= last / page_size_; ++p) {
      const std::int32_t page = batch.page_table[static_cast<std::size_t>(s) * batch.pages + p];
      require(page >= 0 && page < num_pages_, "a page is outside the pool");
    }
  }
  for (int r = 0; r < batch.selected; ++r)
    require(batch.logit_rows[r] >= 0 && batch.logit_rows[r] < batch.tokens,
            "a logit row is outside the step");
}

void Plan::locate_sequences(const Batch& batch) {
  sequence_of_.resize(batch.tokens);
  for (int s = 0; s < batch.sequences; ++s)
    std::fill(sequence_of_.begin() + batch.query_starts[s],
              sequence_of_.begin() + batch.query_starts[s + 1], s);
}

void Plan::fill_rope_table(RopeTable& table, const Batch& batch) {
  const std::size_t half = table.frequencies.size();
  table.cosines.resize(batch.tokens * half);
  table.sines.resize(batch.tokens * half);
  for_rows(batch.tokens, 64 * half, [&](int t) {
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = batch.positions[t] * table.frequencies[i];
      table.cosines[t * half + i] = static_cast<float>(std::cos(angle) * table.attention_factor);
      table.sines[t * half + i] = static_cast<float>(std::sin(angle) * table.attention_factor);
    }
  });
}

void Plan::step(const Batch& batch, std::size_t ops) {
  check(batch);
  ops = std::min(ops, ops_.size());
  ++steps_;
  reserve(batch.tokens, batch.selected);
  best_.resize(batch.selected);
  locate_sequences(batch);
  for (RopeTable& table : rope_tables_) fill_rope_table(table, batch);
  if (profiled_) return run_timed(batch, ops);
  for (std::size_t i = 0; i < ops; ++i) ops_[i](batch);
}

void Plan::add_op(const char* name, Op op) {
  chain_ = nullptr;
  ops_.push_back(std::move(op));
  timings_.push_back({name});
}

void Plan::add_row_op(const char* name, Rows rows, std::size_t cost, RowWork work) {
  if (chain_ == nullptr || !(chain_->rows == rows)) {
    const auto chain = std::make_shared<Chain>(Chain{rows, 0, {}});
    add_op("", [this, chain](const Batch& batch) {
      for_rows(count(batch, chain->rows), chain->cost, [&](int row) {
        for (const RowWork& each : chain->works) each(batch, row);
      });
    });
    chain_ = chain;
  }
  chain_->cost += cost;
  chain_->works.push_back(std::move(work));
  std::string& names = timings_.back().name;
  names += names.empty() ? name : std::string(" + ") + name;
}

void Plan::profile(bool on) {
  profiled_ = on;
  for (Timing& timing : timings_) timing = {timing.name};
}

void Plan::run_timed(const Batch& batch, std::size_t ops) {
  using Clock = std::chrono::steady_clock;
  const bool decodes = batch.tokens == batch.sequences;
  for (std::size_t i = 0; i < ops; ++i) {
    const Clock::time_point start = Clock::now();
    ops_[i](batch);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    (decodes ? timings_[i].decode_seconds : timings_[i].prefill_seconds) += seconds;
  }
}

}  // namespace coldpress
