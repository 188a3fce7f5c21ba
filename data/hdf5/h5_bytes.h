// The bytes of an HDF5 file from a stranger: every read is inside the file, every number inside what was read.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "data/io/fs.h"

namespace tmamba::h5_detail {

inline constexpr int64_t kUndefined = -1;  // an address that points nowhere

// Whether the checksum is that of the bytes: Jenkins' lookup3, which HDF5 puts behind its structures, and its
// Fletcher-32, behind chunks.
bool lookup3_holds(const uint8_t* data, size_t bytes, uint32_t expected);
bool fletcher32_holds(const uint8_t* data, size_t bytes, uint32_t expected);

class Source {
 public:
  // Throws UserError unless it is a plain file that can be read; symbolic links to it are followed.
  explicit Source(const std::filesystem::path& path);
  const std::filesystem::path& path() const { return path_; }
  int64_t bytes() const { return bytes_; }
  [[noreturn]] void refuse(const std::string& problem) const;
  // `count` bytes from `position`; `what` they are, for the message where they lie outside the file.
  std::vector<uint8_t> read(int64_t position, int64_t count, const char* what) const;
  void read(int64_t position, int64_t count, const char* what, void* out) const;

 private:
  std::filesystem::path path_;
  File file_;
  int64_t bytes_;
};

// Takes little-endian numbers off a structure.
class Cursor {
 public:
  Cursor(const Source& source, const char* what, const uint8_t* begin, size_t bytes)
      : source_(&source), what_(what), begin_(begin), at_(begin), end_(begin + bytes) {}
  Cursor(const Source& source, const char* what, const std::vector<uint8_t>& bytes)
      : Cursor(source, what, bytes.data(), bytes.size()) {}

  size_t left() const { return static_cast<size_t>(end_ - at_); }
  size_t taken() const { return static_cast<size_t>(at_ - begin_); }
  const uint8_t* take(size_t bytes);
  void skip(size_t bytes) { take(bytes); }
  uint64_t number(size_t width);
  uint8_t u8() { return static_cast<uint8_t>(number(1)); }
  uint16_t u16() { return static_cast<uint16_t>(number(2)); }
  uint32_t u32() { return static_cast<uint32_t>(number(4)); }
  // A size or count; throws where it does not fit 63 bits.
  int64_t size(size_t width = 8);
  // kUndefined, or a position inside the file.
  int64_t address();
  Cursor sub(size_t bytes) { return Cursor(*source_, what_, take(bytes), bytes); }
  // The next bytes must be these letters, then the version.
  void expect(std::string_view signature, uint8_t version);
  // Takes the checksum, which must be that of all bytes before it.
  void expect_checksum();
  [[noreturn]] void damaged(const std::string& problem) const;

 private:
  const Source* source_;
  const char* what_;
  const uint8_t *begin_, *at_, *end_;
};

}  // namespace tmamba::h5_detail
