// Bounds-checked access to the bytes of an untrusted HDF5 file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "data/io/fs.h"

namespace tmamba::h5_detail {

inline constexpr int64_t kUndefined = -1;  // HDF5's undefined address

// Appended to messages about a structure that contradicts the format.
inline constexpr const char* kDamagedAdvice = "; the file may be damaged: restore or recreate it";

// Whether the bytes have the expected checksum. HDF5 stores a Jenkins lookup3 checksum after each metadata structure
// and a Fletcher-32 checksum after each chunk that has that filter.
bool lookup3_holds(const uint8_t* data, size_t bytes, uint32_t expected);
bool fletcher32_holds(const uint8_t* data, size_t bytes, uint32_t expected);

class Source {
 public:
  // Throws UserError unless `path` is a readable regular file or a symbolic link to one.
  explicit Source(const std::filesystem::path& path);
  const std::filesystem::path& path() const { return path_; }
  int64_t bytes() const { return bytes_; }
  // Throws UserError "PATH: PROBLEM".
  [[noreturn]] void refuse(const std::string& problem) const;
  // Reads `count` bytes at `position`. Throws UserError naming `what` if they are not all inside the file.
  std::vector<uint8_t> read(int64_t position, int64_t count, const char* what) const;
  void read(int64_t position, int64_t count, const char* what, void* out) const;

 private:
  std::filesystem::path path_;
  File file_;
  int64_t bytes_;
};

// Reads little-endian numbers from a structure, in order. Throws UserError naming `what` at its end. Does not own the
// bytes.
class Cursor {
 public:
  Cursor(const Source& source, const char* what, const uint8_t* begin, size_t bytes)
      : source_(&source), what_(what), begin_(begin), at_(begin), end_(begin + bytes) {}
  Cursor(const Source& source, const char* what, const std::vector<uint8_t>& bytes)
      : Cursor(source, what, bytes.data(), bytes.size()) {}

  size_t remaining() const { return static_cast<size_t>(end_ - at_); }
  size_t consumed() const { return static_cast<size_t>(at_ - begin_); }
  const uint8_t* take(size_t bytes);
  void skip(size_t bytes) { take(bytes); }
  uint64_t number(size_t width);
  uint8_t u8() { return static_cast<uint8_t>(number(1)); }
  uint16_t u16() { return static_cast<uint16_t>(number(2)); }
  uint32_t u32() { return static_cast<uint32_t>(number(4)); }
  // A size or count; throws if it does not fit 63 bits.
  int64_t size(size_t width = 8);
  // kUndefined or a position inside the file; throws if it is outside.
  int64_t address();
  Cursor sub(size_t bytes) { return Cursor(*source_, what_, take(bytes), bytes); }
  // Throws unless the next bytes are this signature and this version.
  void expect(std::string_view signature, uint8_t version);
  // Throws unless the next 4 bytes are the checksum of all bytes before them.
  void expect_checksum();
  // Throws UserError "PATH: WHAT PROBLEM", with advice.
  [[noreturn]] void damaged(const std::string& problem) const;

 private:
  const Source* source_;
  const char* what_;
  const uint8_t *begin_, *at_, *end_;
};

}  // namespace tmamba::h5_detail
