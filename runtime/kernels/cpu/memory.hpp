// Cache-line aligned memory that reads as zero and takes no room until it is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace coldpress {

template <class T>
class Memory {
 public:
  Memory() = default;
  explicit Memory(std::size_t count) : count_(count), block_(std::calloc(count + kSlack, sizeof(T))) {
    if (block_ == nullptr) throw std::bad_alloc();
  }

  T* data() const {
    const auto at = reinterpret_cast<std::uintptr_t>(block_.get());
    return reinterpret_cast<T*>((at + kAlign - 1) / kAlign * kAlign);
  }
  std::size_t size() const { return count_; }
  std::size_t bytes() const { return count_ * sizeof(T); }
  bool empty() const { return count_ == 0; }

 private:
  static constexpr std::size_t kAlign = 64;
  // Room to align the start, and for a vector load that runs past the last element.
  static constexpr std::size_t kSlack = 2 * kAlign / sizeof(T);
  struct Free {
    void operator()(void* block) const { std::free(block); }
  };
  std::size_t count_ = 0;
  std::unique_ptr<void, Free> block_;
};

}  // namespace coldpress
