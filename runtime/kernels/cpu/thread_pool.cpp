#include "thread_pool.hpp"

#include <algorithm>

namespace coldpress {

namespace {

constexpr int kPieceBits = 20;
constexpr std::uint64_t kPieceMask = (1U << kPieceBits) - 1;
constexpr int kSpins = 3000;  // tens of microseconds: about the gap between two jobs of a step

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : shares_(std::max(threads, 1)) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int pieces, Work work, void* context) {
  if (pieces == 1 || workers_.empty()) {
    for (int piece = 0; piece < pieces; ++piece) work(context, piece, 0);
    return;
  }
  const std::lock_guard<std::mutex> one_job_at_a_time(mutex_);
  constexpr int kMost = static_cast<int>(kPieceMask);
  for (int first = 0; first < pieces; first += kMost) {
    struct Shifted {
      Work work;
      void* context;
      int first;
    } shifted{work, context, first};
    work_ = [](void* c, int piece, int thread) {
      auto* s = static_cast<Shifted*>(c);
      s->work(s->context, s->first + piece, thread);
    };
    context_ = &shifted;
    deal(std::min(pieces - first, kMost));
    work_off(0);
    wait_until_done();
  }
}

void ThreadPool::deal(int pieces) {
  left_.store(static_cast<std::uint32_t>(pieces), std::memory_order_relaxed);
  ++jobs_;
  const std::int64_t threads = size();
  for (std::int64_t i = 0; i < threads; ++i) {
    const std::uint64_t next = i * pieces / threads;
    const std::uint64_t end = (i + 1) * pieces / threads;
    if (next < end)
      shares_[i].word.store(jobs_ << (2 * kPieceBits) | end << kPieceBits | next,
                            std::memory_order_release);
  }
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
}

// A piece that was claimed keeps the job from changing until it is counted as done.
bool ThreadPool::claim_next(int thread) {
  std::atomic<std::uint64_t>& share = shares_[thread].word;
  std::uint64_t word = share.load(std::memory_order_acquire);
  do {
    if ((word & kPieceMask) >= (word >> kPieceBits & kPieceMask)) return false;
  } while (!share.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel));
  perform(static_cast<int>(word & kPieceMask), thread);
  return true;
}

bool ThreadPool::claim_last(int thread, int from) {
  constexpr std::uint64_t kOne = std::uint64_t{1} << kPieceBits;
  std::atomic<std::uint64_t>& share = shares_[from].word;
  std::uint64_t word = share.load(std::memory_order_acquire);
  do {
    if ((word & kPieceMask) >= (word >> kPieceBits & kPieceMask)) return false;
  } while (!share.compare_exchange_weak(word, word - kOne, std::memory_order_acq_rel));
  perform(static_cast<int>(word >> kPieceBits & kPieceMask) - 1, thread);
  return true;
}

void ThreadPool::perform(int piece, int thread) {
  work_(context_, piece, thread);
  if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_all();
}

void ThreadPool::work_off(int thread) {
  while (claim_next(thread)) {
  }
  for (int i = 1; i < size(); ++i)
    while (claim_last(thread, (thread + i) % size())) {
    }
}

void ThreadPool::serve(int thread) {
  std::uint32_t seen = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    work_off(thread);
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen && spins < kSpins) {
      if (ahead_.advance()) continue;
      pause();
      ++spins;
    }
    if (spins == kSpins) generation_.wait(seen, std::memory_order_acquire);
    seen = generation_.load(std::memory_order_acquire);
  }
}

void ThreadPool::wait_until_done() {
  for (int spins = 0; spins < kSpins; ++spins) {
    if (left_.load(std::memory_order_acquire) == 0) return;
    if (!ahead_.advance()) pause();
  }
  for (std::uint32_t left = left_.load(std::memory_order_acquire); left != 0;
       left = left_.load(std::memory_order_acquire))
    left_.wait(left, std::memory_order_acquire);
}

}  // namespace coldpress
