// Rows of bytes that still lie in a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace coldpress {

// Read and not mapped: a file that becomes shorter meanwhile is an error, and no end of the process.
class FileRows {
 public:
  // Throws std::runtime_error where the file cannot be opened.
  FileRows(const std::string& path, std::uint64_t begin, std::size_t row_bytes);
  ~FileRows();
  FileRows(const FileRows&) = delete;
  FileRows& operator=(const FileRows&) = delete;

  std::size_t row_bytes() const { return row_bytes_; }
  // Rows [first, first + count) to `to`; false where the file does not hold them. Any thread.
  bool read(std::size_t first, std::size_t count, std::uint8_t* to) const;

 private:
  int file_;
  std::uint64_t begin_;
  std::size_t row_bytes_;
};

}  // namespace coldpress
