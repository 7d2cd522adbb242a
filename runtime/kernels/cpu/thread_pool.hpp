// A few threads that share out the pieces of one job at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace coldpress {

// Pieces are claimed one by one, so that a thread that lost its core holds up one piece and not its
// whole share. Waiting spins briefly, then sleeps: a neighbour on the machine gets the core.
class ThreadPool {
 public:
  // `threads` counts the caller of run().
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

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
  bool claim(int thread);
  void serve(int thread);
  void wait_until_done(std::uint32_t pieces);

  // generation << 40 | pieces << 20 | next piece: one word, so that a late thread can never take a
  // piece of a job that it has not read.
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<std::uint32_t> done_{0};
  std::atomic<bool> stop_{false};
  Work work_ = nullptr;
  void* context_ = nullptr;
  std::mutex mutex_;
  std::vector<std::thread> workers_;
};

}  // namespace coldpress
