#include "file_rows.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace coldpress {

FileRows::FileRows(const std::string& path, std::uint64_t begin, std::size_t row_bytes)
    : file_(open(path.c_str(), O_RDONLY | O_CLOEXEC)), begin_(begin), row_bytes_(row_bytes) {
  if (file_ < 0) throw std::runtime_error(std::string("cannot be read: ") + std::strerror(errno));
}

FileRows::~FileRows() { close(file_); }

bool FileRows::read(std::size_t first, std::size_t count, std::uint8_t* to) const {
  std::size_t left = count * row_bytes_;
  auto at = static_cast<off_t>(begin_ + first * row_bytes_);
  while (left > 0) {
    const ssize_t done = pread(file_, to, left, at);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return false;
    to += done;
    at += done;
    left -= static_cast<std::size_t>(done);
  }
  return true;
}

}  // namespace coldpress
