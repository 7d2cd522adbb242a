// A Program lowered to native ops over buffers: one call of step() runs them all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "matrix.hpp"
#include "memory.hpp"
#include "read_ahead.hpp"
#include "thread_pool.hpp"

namespace coldpress {

// One step's input, as runtime.engine.batch.StepBatch describes it.
struct Batch {
  const std::int32_t* token_ids;
  const std::int32_t* positions;
  int tokens;
  const std::int32_t* query_starts;
  const std::int32_t* page_table;  // [sequences, pages]
  int sequences;
  int pages;
  const std::int32_t* logit_rows;
  int selected;
};

class Plan {
 public:
  using BufferId = int;
  struct Projection {
    BufferId out;
    std::shared_ptr<const Matrix> matrix;
    std::vector<float> bias;  // [rows], or empty
  };

  Plan(std::shared_ptr<ThreadPool> pool, const KernelTable& kernels);
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  // float32 [tokens, width], or [selected rows, width]; routed ones have a row for each token that
  // is sent to the expert whose turn it is.
  BufferId add_buffer(int width, bool selected, bool routed = false);
  // Rows of int8 with their scales; the ids are of their own kind.
  BufferId add_rounded_buffer(int width, bool selected, bool routed = false);
  // A rotary embedding; frequencies are radians per position, float64 [dimension / 2].
  int add_rope_table(std::vector<double> frequencies, double attention_factor);
  int add_cache(int kv_heads, int head_dim, CacheNumber number);

  void add_embed(BufferId out, std::shared_ptr<const Matrix> table, float scale);
  void add_rms_norm(BufferId out, BufferId x, std::vector<float> weight, float eps);
  // Columns of x from `start` on, as many as `out` is wide.
  void add_slice(BufferId out, BufferId x, int start);
  // x's columns in the order that `matrix` wants them.
  void add_gather(BufferId out, BufferId x, std::shared_ptr<const Matrix> matrix);
  void add_round(BufferId out, BufferId x, Rounding rounding);
  void add_linear(BufferId x, std::vector<Projection> projections);
  // out: a rounded buffer; groups are the whole row or a multiple of kRun columns.
  void add_quantize(BufferId out, BufferId x, Rounding rounding);
  // x: a rounded buffer; every matrix is in quads.
  void add_linear_int8(BufferId x, std::vector<Projection> projections);
  void add_rope(BufferId out, BufferId x, int heads, int head_dim, int table);
  // `view` without its pointers and strides, which belong to cache `cache`.
  void add_attend(BufferId out, BufferId q, BufferId k, BufferId v, int cache, AttentionView view);
  void add_gated_act(BufferId out, BufferId gate, BufferId up, Activation activation);
  void add_add(BufferId out, BufferId a, BufferId b);
  // Each row of `logits` [tokens, experts] is sent to the `chosen` experts for which it is largest,
  // times the softmax of those (normalized), or of all; `out` becomes zeros.
  void add_route(BufferId out, BufferId logits, int chosen, bool normalized);
  // The rows of x that are sent to `expert`, whose turn it is from here on.
  void add_send(BufferId out, BufferId x, int expert);
  // Adds the rows of x to those of `out` that they came from, each times its factor.
  void add_collect(BufferId out, BufferId x);
  void add_select_rows(BufferId out, BufferId x);
  void add_softcap(BufferId x, float cap);
  // Of each row the index of its largest number; see best().
  void add_argmax(BufferId x);

  // Takes the memory of the KV pool and of steps of up to `tokens` tokens (larger ones grow it).
  void allocate(int num_pages, int page_size, int tokens, int vocab_size);
  // Runs the first `ops` ops. Throws std::invalid_argument where the batch points outside the pool,
  // the table or itself.
  void step(const Batch& batch, std::size_t ops);
  std::size_t ops() const { return ops_.size(); }

  // A row of logits whose largest number is finite, and how a token is drawn from it.
  struct RowDraw {
    const float* row;
    DrawOptions options;
  };
  std::vector<std::int32_t> draw(const std::vector<RowDraw>& draws, int width);

  const float* rows(BufferId id) const { return buffers_[id].data.data(); }
  std::size_t stride(BufferId id) const { return buffers_[id].stride; }
  int width(BufferId id) const { return buffers_[id].width; }
  // What argmax found in each row of the last step that came so far.
  const std::vector<std::int32_t>& best() const { return best_; }
  std::size_t cache_bytes() const;
  // Nobody will read what these pages of the pool hold.
  void give_back(std::vector<int> pages) const;

  // Seconds that each op took since profiling began, in the steps of one token for each sequence
  // (decode) and in the others (prefill).
  struct Timing {
    std::string name;
    double decode_seconds = 0.0;
    double prefill_seconds = 0.0;
  };
  void profile(bool on);
  const std::vector<Timing>& timings() const { return timings_; }

 private:
  struct Buffer {
    int width;
    std::size_t stride;
    bool selected;
    bool routed;
    int capacity = 0;
    Memory<float> data;
    float* row(std::size_t i) const { return data.data() + i * stride; }
  };
  struct RoundedBuffer {
    int width;
    std::size_t stride;
    bool selected;
    bool routed;
    int capacity = 0;
    Memory<std::int8_t> codes;
    Memory<float> scales;
    Memory<std::int32_t> sums;
    RoundedRows rows() const { return {codes.data(), stride, scales.data(), sums.data()}; }
  };
  struct Part {
    BufferId out;
    std::shared_ptr<const Matrix> matrix;
    MatrixView view;
    Memory<float> bias;
    int first_strip;
  };
  // Matrices that multiply the same rows, strip after strip.
  struct Parts {
    std::vector<Part> parts;
    int strips = 0;
    const Part& holding(int strip) const;
  };
  struct RopeTable {
    std::vector<double> frequencies;
    double attention_factor;
    std::vector<float> cosines;  // [tokens, dimension / 2]
    std::vector<float> sines;
  };
  struct Cache {
    int kv_heads;
    int head_dim;
    CacheNumber number;
    // Bytes: of a page, where the layer begins; of a head, where what is not its keys begins.
    std::size_t start = 0;
    std::size_t values = 0;
    std::size_t key_scales = 0;  // of int8
    std::size_t value_scales = 0;
    std::size_t head_bytes = 0;
  };
  struct FirstKeys {
    const void* pages[kAfter];
  };
  struct Route {
    std::vector<int> rows;  // of the step, ascending
    std::vector<float> factors;
  };
  struct Product {
    std::vector<ReadAhead::Span> spans;
    std::uint64_t start = 0;  // its place in the stream
    std::vector<ReadAhead::Span> following;
  };
  // Which rows a buffer has.
  struct Rows {
    bool selected;
    bool routed;
    bool operator==(const Rows&) const = default;
  };
  // Neighbouring ops of which each row needs the same row alone: they run as one, so that a row is
  // in the first-level cache for all of them and threads meet once.
  using RowWork = std::function<void(const Batch&, int row)>;
  struct Chain {
    Rows rows;
    std::size_t cost;  // of a row
    std::vector<RowWork> works;
  };
  using Op = std::function<void(const Batch&)>;
  void add_op(const char* name, Op op);
  void add_row_op(const char* name, Rows rows, std::size_t cost, RowWork work);
  void run_timed(const Batch& batch, std::size_t ops);

  void check(const Batch& batch) const;
  void reserve(int tokens, int selected);
  void locate_sequences(const Batch& batch);
  void fill_rope_table(RopeTable& table, const Batch& batch);
  Rows rows_like(BufferId id) const;
  int count(const Batch& batch, Rows rows) const;
  static std::shared_ptr<const Parts> join(std::vector<Projection> projections);
  // The product's index in the stream of weights.
  std::size_t enter(const Parts& parts);
  void lay_out_stream();
  // Threads without work ask memory for what follows.
  void announce_after(std::size_t product);
  // multiply(part, strip of the part, first row, rows, thread) for every strip and run of rows.
  template <class F>
  void for_strips(const Batch& batch, const Parts& parts, F&& multiply);
  const std::int32_t* pages_of(const Batch& batch, int token) const;
  void store_head(const AttentionView& view, const Batch& batch, int token, int kv_head,
                  const float* k, const float* v) const;
  void lay_out(Cache& cache) const;
  void split_sequences(const Batch& batch, int most);
  struct Queries;
  Queries queries_of(const AttentionView& view, const Batch& batch, BufferId q, BufferId out,
                     int piece) const;
  FirstKeys first_keys(const AttentionView& view, const Batch& batch, int piece) const;
  void attend_whole(const AttentionView& view, const Queries& queries, const void* const* after,
                    float* scratch) const;
  void attend_split(const AttentionView& view, const Batch& batch, BufferId q, BufferId out,
                    int pieces, int stretches);
  // work(row) for every row; rows are handed out in runs of about `grain` / cost_of_row.
  template <class F>
  void for_rows(int rows, std::size_t cost_of_row, F&& work);

  std::shared_ptr<ThreadPool> pool_;
  const KernelTable& kernels_;
  std::vector<Buffer> buffers_;
  std::vector<RoundedBuffer> rounded_;
  std::vector<RopeTable> rope_tables_;
  std::vector<Cache> caches_;
  Memory<std::uint8_t> cached_;  // [page][layer][kv_head]: few huge pages for a short context
  std::size_t page_bytes_ = 0;
  std::vector<Op> ops_;
  std::shared_ptr<Chain> chain_;  // what the last op runs, if another row op may join it
  std::vector<Timing> timings_;  // of each op
  bool profiled_ = false;
  std::vector<int> sequence_of_;
  std::vector<std::int32_t> best_;
  std::vector<Route> routes_;  // one for each expert of the layer that is run
  int expert_ = 0;
  std::vector<Product> products_;
  std::uint64_t stream_places_ = 0;  // that one step takes
  std::uint64_t steps_ = 0;
  std::vector<int> run_starts_;  // of tokens; the last one ends the step
  Memory<float> parts_;          // of rows whose stretches are attended to by several threads
  std::vector<Memory<float>> scratch_;  // one per thread
  std::size_t scratch_size_;
  std::vector<Memory<float>> drawn_;  // what draws work in, one per thread
  int num_pages_ = 0;
  int page_size_ = 0;
  int vocab_size_ = 0;
};

template <class F>
void Plan::for_rows(int rows, std::size_t cost_of_row, F&& work) {
  constexpr std::size_t kGrain = 1 << 12;  // elements: a microsecond, above a hand-over
  const std::size_t run = cost_of_row >= kGrain ? 1 : kGrain / (cost_of_row + 1) + 1;
  const int pieces = static_cast<int>((rows + run - 1) / run);
  pool_->run(pieces, [&](int piece, int) {
    const auto start = [&](std::int64_t at) { return static_cast<int>(at * rows / pieces); };
    for (int row = start(piece); row < start(piece + 1); ++row) work(row);
  });
}

}  // namespace coldpress
