// Files and folders that survive a crash: every call checked, the path and the cause in the message, and the fsyncs
// that make a write or a rename durable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/check.h"

namespace tmamba {

// A failed call on a file. what() holds the path, the cause and, where there is one, what to do; code() is the errno.
class FileError : public Error {
 public:
  // "cannot WHAT PATH: CAUSE".
  FileError(const std::string& what, const std::filesystem::path& path, int code);
  int code() const { return code_; }

 private:
  int code_;
};

// An open file. Move-only; the destructor closes it.
class File {
 public:
  // A new file; one that is there is an error.
  static File create(const std::filesystem::path& path);
  // An existing regular file; a symbolic link, a folder or a device is an error (code ELOOP or EINVAL).
  static File open_read(const std::filesystem::path& path);
  static File open_update(const std::filesystem::path& path);

  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  const std::filesystem::path& path() const { return path_; }
  int64_t bytes() const;
  // Takes disk space for the first `bytes` bytes now, so that a full disk is found before anything is written; on file
  // systems that cannot, looks whether so much is free.
  void reserve(int64_t bytes);
  void write(int64_t position, const void* data, size_t bytes);
  // Throws FileError with code 0 where the file ends before.
  void read(int64_t position, void* data, size_t bytes) const;
  // Returns when the bytes are on the disk.
  void sync();
  // Closes; a failure (some network file systems write only now) throws.
  void close();

 private:
  File(const std::filesystem::path& path, int flags);
  std::filesystem::path path_;
  int fd_ = -1;
};

// The whole file as text; throws where it holds more than `max_bytes`.
std::string read_text(const std::filesystem::path& path, int64_t max_bytes);
// A new file with this text, on the disk when it returns.
void write_text_durably(const std::filesystem::path& path, std::string_view text);
// Replaces `path` by a file with this text in one step: a reader sees the old text or the new one. `nonce` names the
// temporary file beside it, PATH.tmp-NONCE.
void replace_text_durably(const std::filesystem::path& path, std::string_view text, const std::string& nonce);

// The folder's entries (names made, renamed or removed in it) are on the disk when it returns.
void sync_folder(const std::filesystem::path& folder);
// Makes one folder; one that is there is an error.
void make_folder(const std::filesystem::path& folder);
// Makes a folder and those above it as far as they are missing, on the disk when it returns.
void make_folders(const std::filesystem::path& folder);
// The paths in a folder, sorted; none where there is no such folder.
std::vector<std::filesystem::path> folder_entries(const std::filesystem::path& folder);
// Renames; `to` must not exist.
void rename_new(const std::filesystem::path& from, const std::filesystem::path& to);
// Swaps two existing names in one step; false where the file system cannot.
bool exchange(const std::filesystem::path& a, const std::filesystem::path& b);

// 16 hexadecimal digits from the system's random source.
std::string random_nonce();

}  // namespace tmamba
