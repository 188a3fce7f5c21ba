// Crash-safe files and folders. Every call is checked, messages name the path and the cause, and functions that promise
// durability call fsync on the file and its folder. All functions throw FileError on failure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/check.h"

namespace tmamba {

// A failed call on a file. what() contains the path, the cause and, for common causes, what to do. code() is the errno,
// or 0 for an unexpected end of file.
class FileError : public Error {
 public:
  // "cannot WHAT PATH: CAUSE".
  FileError(const std::string& what, const std::filesystem::path& path, int code);
  int code() const { return code_; }

 private:
  int code_;
};

// Owns an open regular file. The destructor closes it and ignores errors; call close() after writing.
class File {
 public:
  // Creates a file; fails if the path exists.
  static File create(const std::filesystem::path& path);
  // Opens an existing regular file; fails on a symbolic link (ELOOP), a folder or a device (EINVAL).
  static File open_read(const std::filesystem::path& path);
  static File open_update(const std::filesystem::path& path);

  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  const std::filesystem::path& path() const { return path_; }
  int64_t bytes() const;
  // Allocates disk space for the first `bytes` bytes, so that a full disk fails here and not in a later write. On file
  // systems without fallocate it only checks the free space.
  void reserve(int64_t bytes);
  void write(int64_t position, const void* data, size_t bytes);
  // Throws FileError with code 0 if the file ends early.
  void read(int64_t position, void* data, size_t bytes) const;
  // fsync.
  void sync();
  // Closes and reports write errors: some network file systems write only on close.
  void close();

 private:
  File(const std::filesystem::path& path, int flags);
  std::filesystem::path path_;
  int fd_ = -1;
};

// The file's content. Throws Error if it has more than `max_bytes` bytes.
std::string read_text(const std::filesystem::path& path, int64_t max_bytes);
// Creates a file with this text; durable on return.
void write_text_durably(const std::filesystem::path& path, std::string_view text);
// Atomically replaces the content of `path`; durable on return. The temporary file is PATH.tmp-NONCE.
// Fails if the path is a device, pipe or socket.
void replace_text_durably(const std::filesystem::path& path, std::string_view text, const std::string& nonce);

// Makes created, renamed and removed entries of the folder durable.
void sync_folder(const std::filesystem::path& folder);
// Creates one folder; fails if the path exists.
void make_folder(const std::filesystem::path& folder);
// Creates a folder and its missing parents; durable on return.
void make_folders(const std::filesystem::path& folder);
// The paths in a folder, sorted; empty if the folder does not exist.
std::vector<std::filesystem::path> folder_entries(const std::filesystem::path& folder);
// Renames; fails if `to` exists.
void rename_new(const std::filesystem::path& from, const std::filesystem::path& to);
// Atomically swaps two existing paths; returns false if the file system does not support it.
bool exchange(const std::filesystem::path& a, const std::filesystem::path& b);

// 16 hexadecimal digits from the system's random number generator.
std::string random_nonce();

}  // namespace tmamba
