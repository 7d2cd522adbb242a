// Pages of the KV pool whose memory is given up.
#include <algorithm>
#include <stdexcept>

#include "plan.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace coldpress {

void discard([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  static const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const auto at = reinterpret_cast<std::uintptr_t>(begin);
  const std::size_t first = round_up(at, page), end = (at + bytes) / page * page;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
#endif
}

void Plan::give_back(std::vector<int> pages) const {
  std::sort(pages.begin(), pages.end());
  if (!pages.empty() && (pages.front() < 1 || pages.back() >= num_pages_))
    throw std::invalid_argument("a page is not in the pool");
  // Neighbours together: the ends of a page of ours lie within pages of the system.
  for (std::size_t i = 0; i < pages.size();) {
    std::size_t run = 1;
    while (i + run < pages.size() && pages[i + run] == pages[i] + static_cast<int>(run)) ++run;
    cached_.discard(pages[i] * page_bytes_, run * page_bytes_);
    i += run;
  }
}

}  // namespace coldpress
