// A few threads that share out the pieces of one job at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "read_ahead.hpp"

namespace coldpress {

// Every thread has a share of neighbouring pieces: memory likes long streams far apart better than
// threads that leap over one another. It claims them one by one from the front, and then what others
// have left from the back, so that a thread that lost its core holds up one piece and not its share.
// Waiting spins briefly, then sleeps: a neighbour on the machine gets the core.
class ThreadPool {
 public:
  // `threads` counts the caller of run().
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(shares_.size()); }
  // What threads without a piece ask memory for.
  ReadAhead& ahead() { return ahead_; }

  // work(context, piece, thread) for every piece in [0, pieces); returns when all are done.
  using Work = void (*)(void* context, int piece, int thread);
  void run(int pieces, Work work, void* context);

  // The same for a callable of (piece, thread), which must not throw.
  template <class F>
  void run(int pieces, F&& work) {
    using Callable = std::remove_reference_t<F>;
    run(
        pieces,
        [](void* context, int piece, int thread) {
          (*static_cast<Callable*>(context))(piece, thread);
        },
        const_cast<void*>(static_cast<const void*>(&work)));
  }

 private:
  // Pieces of one thread's share that nobody has claimed.
  struct alignas(64) Share {
    // job << 40 | end << 20 | next: one word, so that a late thread can never take a piece of a job
    // that it has not read.
    std::atomic<std::uint64_t> word{0};
  };
  void deal(int pieces);
  bool claim_next(int thread);
  bool claim_last(int thread, int from);
  void work_off(int thread);
  void perform(int piece, int thread);
  void serve(int thread);
  void wait_until_done();

  std::vector<Share> shares_;
  std::uint64_t jobs_ = 0;
  std::atomic<std::uint32_t> generation_{0};
  alignas(64) std::atomic<std::uint32_t> left_{0};
  std::atomic<bool> stop_{false};
  Work work_ = nullptr;
  void* context_ = nullptr;
  ReadAhead ahead_;
  std::mutex mutex_;
  std::vector<std::thread> workers_;
};

}  // namespace coldpress
