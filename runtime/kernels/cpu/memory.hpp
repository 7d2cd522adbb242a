// Cache-line aligned memory that reads as zero and takes no room until it is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace coldpress {

// Hands what was freed between blocks that are still held back to the system, where the C library
// keeps it for itself: packing leaves holes as large as the arrays that weights came in.
inline void give_back_freed() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

// For what is written once and then read from end to end, again and again: a part of a large block
// in huge pages where the system has them, so that no time goes into finding small ones. A block is
// given back when nothing in it is used any more. Any thread.
std::shared_ptr<void> take_streamed(std::size_t bytes);

// What lies from `begin` on is of no use any more, and takes no room until it is written again, as
// far as whole pages of the system lie in it.
void discard(void* begin, std::size_t bytes);

struct Streamed {};

template <class T>
class Memory {
 public:
  Memory() = default;
  explicit Memory(std::size_t count)
      : count_(count), block_(std::calloc(count + kSlack, sizeof(T)), std::free) {
    if (block_ == nullptr) throw std::bad_alloc();
  }
  Memory(std::size_t count, Streamed)
      : count_(count), block_(take_streamed((count + kSlack) * sizeof(T))) {}
  Memory(Memory&&) = default;
  Memory& operator=(Memory&&) = default;

  T* data() const {
    const auto at = reinterpret_cast<std::uintptr_t>(block_.get());
    return reinterpret_cast<T*>((at + kAlign - 1) / kAlign * kAlign);
  }
  std::size_t size() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }
  bool empty() const { return count_ == 0; }
  void discard(std::size_t first, std::size_t count) const {
    coldpress::discard(data() + first, count * sizeof(T));
  }

 private:
  static constexpr std::size_t kAlign = 64;
  // Room to align the start, and for a vector load that runs past the last element.
  static constexpr std::size_t kSlack = 2 * kAlign / sizeof(T);
  std::size_t count_ = 0;
  std::shared_ptr<void> block_;
};

}  // namespace coldpress
