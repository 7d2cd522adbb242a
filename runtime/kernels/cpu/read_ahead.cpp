#include "read_ahead.hpp"

#include <algorithm>

namespace coldpress {

void ReadAhead::announce(const std::vector<Span>& spans, std::uint64_t start) {
  const std::size_t count = std::min(spans.size(), kMost);
  end_.store(0, std::memory_order_relaxed);
  std::uint64_t end = start;
  for (std::size_t i = 0; i < count; ++i) {
    entries_[i].data.store(static_cast<const char*>(spans[i].data), std::memory_order_relaxed);
    entries_[i].bytes.store(spans[i].bytes, std::memory_order_relaxed);
    end += places(spans[i].bytes);
  }
  start_.store(start, std::memory_order_relaxed);
  if (next_.load(std::memory_order_relaxed) < start)
    next_.store(start, std::memory_order_relaxed);
  end_.store(end, std::memory_order_release);
}

bool ReadAhead::advance() {
  const std::uint64_t end = end_.load(std::memory_order_acquire);
  if (next_.load(std::memory_order_relaxed) >= end) return false;
  std::uint64_t place = next_.fetch_add(1, std::memory_order_relaxed);
  const std::uint64_t start = start_.load(std::memory_order_relaxed);
  if (place < start || place >= end) return false;
  place -= start;
  for (const Entry& entry : entries_) {
    const std::size_t bytes = entry.bytes.load(std::memory_order_relaxed);
    const std::uint64_t size = places(bytes);
    if (place >= size) {
      place -= size;
      continue;
    }
    const std::size_t from = place * kChunk;
    const char* data = entry.data.load(std::memory_order_relaxed) + from;
    const std::size_t left = std::min(kChunk, bytes - from);
    for (std::size_t line = 0; line < left; line += 64) __builtin_prefetch(data + line, 0, 2);
    return true;
  }
  return false;
}

}  // namespace coldpress
