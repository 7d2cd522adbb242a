#include "memory.hpp"

#include <algorithm>
#include <mutex>

#include "kernels.hpp"

// Sanitizers see the end of each allocation, and not that of a part of one.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#include <sys/mman.h>
#endif

namespace coldpress {

#ifdef MADV_HUGEPAGE

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
// Large, because the last huge page of a block is there as a whole, however little of it is used; what
// lies behind that is never touched.
constexpr std::size_t kBlock = 128 * kHugePage;

std::shared_ptr<char> map_block(std::size_t bytes) {
  // Enough that a whole number of huge pages lies in it, wherever it begins.
  const std::size_t mapped = round_up(bytes, kHugePage) + kHugePage;
  constexpr int kKind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, kKind, -1, 0);
  if (start == MAP_FAILED) throw std::bad_alloc();
  madvise(start, mapped, MADV_HUGEPAGE);  // without them, small pages will do
  const auto at = reinterpret_cast<std::uintptr_t>(start);
  const std::size_t skipped = round_up(at, kHugePage) - at;
  const std::shared_ptr<char> whole(static_cast<char*>(start),
                                    [mapped](char* block) { munmap(block, mapped); });
  return {whole, whole.get() + skipped};
}

}  // namespace

std::shared_ptr<void> take_streamed(std::size_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<char> current;
  static std::size_t used = 0;
  bytes = round_up(bytes, 64);
  if (bytes > kBlock / 2) return map_block(bytes);
  const std::lock_guard<std::mutex> one_at_a_time(mutex);
  std::shared_ptr<char> block = current.lock();
  if (block == nullptr || used + bytes > kBlock) {
    block = map_block(kBlock);
    current = block;
    used = 0;
  }
  const std::size_t at = used;
  used += bytes;
  return {block, block.get() + at};
}

#else

std::shared_ptr<void> take_streamed(std::size_t bytes) {
  std::shared_ptr<void> block(std::calloc(bytes, 1), std::free);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

#endif

}  // namespace coldpress
