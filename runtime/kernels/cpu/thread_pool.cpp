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

ThreadPool::ThreadPool(int threads) {
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
    const int count = std::min(pieces - first, kMost);
    done_.store(0, std::memory_order_relaxed);
    const std::uint64_t next = (ticket_.load(std::memory_order_relaxed) >> (2 * kPieceBits)) + 1;
    ticket_.store(next << (2 * kPieceBits) | static_cast<std::uint64_t>(count) << kPieceBits,
                  std::memory_order_release);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    while (claim(0)) {
    }
    wait_until_done(static_cast<std::uint32_t>(count));
  }
}

bool ThreadPool::claim(int thread) {
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  const auto pieces = [&] { return ticket >> kPieceBits & kPieceMask; };
  do {
    if ((ticket & kPieceMask) >= pieces()) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel));
  // The job cannot change before this piece is counted as done.
  work_(context_, static_cast<int>(ticket & kPieceMask), thread);
  if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == pieces()) done_.notify_all();
  return true;
}

void ThreadPool::serve(int thread) {
  std::uint32_t seen = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    while (claim(thread)) {
    }
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen && spins < kSpins) {
      pause();
      ++spins;
    }
    if (spins == kSpins) generation_.wait(seen, std::memory_order_acquire);
    seen = generation_.load(std::memory_order_acquire);
  }
}

void ThreadPool::wait_until_done(std::uint32_t pieces) {
  for (int spins = 0; spins < kSpins; ++spins) {
    if (done_.load(std::memory_order_acquire) == pieces) return;
    pause();
  }
  for (std::uint32_t done = done_.load(std::memory_order_acquire); done != pieces;
       done = done_.load(std::memory_order_acquire))
    done_.wait(done, std::memory_order_acquire);
}

}  // namespace coldpress
