// Asks memory for what will be read soon, in the time that a thread would only wait.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace coldpress {

// One thread says what comes next; any others bring it into the cache that they share, a chunk at a
// time. Nothing but addresses passes between them: a stale one costs a request, and never a fault.
class ReadAhead {
 public:
  struct Span {
    const void* data;
    std::size_t bytes;
  };

  // `spans` begin at place `start` of a stream whose places only ever grow: what lies before the
  // farthest place that was asked for is not asked for again. At most kMost of them count.
  void announce(const std::vector<Span>& spans, std::uint64_t start);
  // Asks for the next chunk; false where there is none.
  bool advance();

  static constexpr std::size_t kMost = 16;
  // Places that a span takes.
  static std::uint64_t places(std::size_t bytes) { return (bytes + kChunk - 1) / kChunk; }

 private:
  static constexpr std::size_t kChunk = 4096;
  struct Entry {
    std::atomic<const char*> data{nullptr};
    std::atomic<std::size_t> bytes{0};
  };
  Entry entries_[kMost];
  std::atomic<std::uint64_t> start_{0};
  std::atomic<std::uint64_t> end_{0};
  alignas(64) std::atomic<std::uint64_t> next_{0};
};

}  // namespace coldpress
