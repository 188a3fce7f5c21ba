#include "data/io/fs.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

namespace tmamba {

namespace fs = std::filesystem;

namespace {

// Upper limit of one read or write call.
constexpr size_t kCallBytes = size_t{64} << 20;

std::string advice(int code) {
  switch (code) {
    case ENOSPC:
      return "; the disk is full (bytes or inodes): free some space or save elsewhere";
    case EDQUOT:
      return "; your disk quota is used up: free some space or save elsewhere";
    case EFBIG:
      return "; the file would exceed the largest size allowed: see `ulimit -f` and the file system's limit";
    case EACCES:
    case EPERM:
    case EROFS:
      return "; check its owner and permissions";
    case EMFILE:
    case ENFILE:
      return "; raise `ulimit -n`";
    default:
      return "";
  }
}

template <class Call>
auto retry_interrupted(Call call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

}  // namespace

FileError::FileError(const std::string& what, const fs::path& path, int code)
    : Error(str("cannot ", what, " ", path.string(), ": ",
                code == 0 ? "the file ends too early" : std::generic_category().message(code), advice(code))),
      code_(code) {}

File::File(const fs::path& path, int flags) : path_(path) {
  // O_NONBLOCK: opening a named pipe must fail and not block.
  fd_ = retry_interrupted([&] { return ::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666); });
  if (fd_ < 0) throw FileError((flags & O_CREAT) ? "create" : "open", path, errno);
  struct stat info {};
  if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(std::exchange(fd_, -1));
    throw FileError("use as a plain file", path, EINVAL);
  }
}

File File::create(const fs::path& path) { return File(path, O_RDWR | O_CREAT | O_EXCL); }
File File::open_read(const fs::path& path) { return File(path, O_RDONLY); }
File File::open_update(const fs::path& path) { return File(path, O_RDWR); }

File::File(File&& other) noexcept : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  return *this;
}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

int64_t File::bytes() const {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) throw FileError("read the size of", path_, errno);
  return info.st_size;
}

void File::reserve(int64_t bytes) {
  if (bytes == 0) return;
  const int result = retry_interrupted([&] { return ::fallocate(fd_, 0, 0, bytes); });
  if (result == 0) return;
  if (errno != EOPNOTSUPP && errno != ENOSYS) throw FileError("reserve space for", path_, errno);
  struct statvfs info {};
  if (::fstatvfs(fd_, &info) != 0) return;  // the free space is unknown
  const uint64_t free = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  if (free < static_cast<uint64_t>(bytes - this->bytes())) throw FileError("reserve space for", path_, ENOSPC);
}

void File::write(int64_t position, const void* data, size_t bytes) {
  const auto* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = retry_interrupted([&] { return ::pwrite(fd_, p, std::min(bytes, kCallBytes), position); });
    if (done <= 0) throw FileError("write", path_, done < 0 ? errno : ENOSPC);
    p += done, position += done, bytes -= static_cast<size_t>(done);
  }
}

void File::read(int64_t position, void* data, size_t bytes) const {
  auto* p = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t done = retry_interrupted([&] { return ::pread(fd_, p, std::min(bytes, kCallBytes), position); });
    if (done <= 0) throw FileError("read", path_, done < 0 ? errno : 0);
    p += done, position += done, bytes -= static_cast<size_t>(done);
  }
}

void File::sync() {
  if (retry_interrupted([&] { return ::fsync(fd_); }) != 0) throw FileError("write to the disk", path_, errno);
}

void File::close() {
  // close() is not retried after EINTR, because Linux has released the descriptor by then.
  if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) throw FileError("close", path_, errno);
}

std::string read_text(const fs::path& path, int64_t max_bytes) {
  const File file = File::open_read(path);
  const int64_t bytes = file.bytes();
  if (bytes > max_bytes) throw Error(str(path.string(), " has ", bytes, " bytes; the limit is ", max_bytes));
  std::string text(static_cast<size_t>(bytes), '\0');
  file.read(0, text.data(), text.size());
  return text;
}

void write_text_durably(const fs::path& path, std::string_view text) {
  File file = File::create(path);
  file.write(0, text.data(), text.size());
  file.sync();
  file.close();
}

void replace_text_durably(const fs::path& path, std::string_view text, const std::string& nonce) {
  // A rename would put a plain file where /dev/null or a pipe is.
  std::error_code ignored;
  const fs::file_status there = fs::symlink_status(path, ignored);
  if (fs::is_other(there)) throw FileError("use as a plain file", path, EINVAL);
  const fs::path temporary = path.string() + ".tmp-" + nonce;
  try {
    write_text_durably(temporary, text);
    if (::rename(temporary.c_str(), path.c_str()) != 0) throw FileError("replace", path, errno);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  sync_folder(path.parent_path());
}

void sync_folder(const fs::path& folder) {
  const int fd = retry_interrupted([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (fd < 0) throw FileError("open the directory", folder, errno);
  const int result = retry_interrupted([&] { return ::fsync(fd); });
  const int code = errno;
  ::close(fd);
  // EINVAL: the file system does not support fsync of folders.
  if (result != 0 && code != EINVAL) throw FileError("write to the disk the directory", folder, code);
}

void make_folder(const fs::path& folder) {
  if (::mkdir(folder.c_str(), 0777) != 0) throw FileError("make the directory", folder, errno);
}

void make_folders(const fs::path& folder) {
  std::error_code error;
  if (fs::is_directory(folder, error)) return;
  const fs::path above = folder.has_filename() ? folder.parent_path() : folder.parent_path().parent_path();
  if (!above.empty()) make_folders(above);
  // EEXIST: another process has created it meanwhile.
  if (::mkdir(folder.c_str(), 0777) != 0) {
    const int code = errno;
    if (code != EEXIST) throw FileError("make the directory", folder, code);
    if (!fs::is_directory(folder, error)) throw FileError("make the directory", folder, ENOTDIR);
  }
  sync_folder(above.empty() ? fs::path(".") : above);
}

std::vector<fs::path> folder_entries(const fs::path& folder) {
  std::vector<fs::path> out;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) out.push_back(entry->path());
  if (error && error != std::errc::no_such_file_or_directory) throw FileError("list", folder, error.value());
  std::sort(out.begin(), out.end());
  return out;
}

void rename_new(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return;
  if (errno != EINVAL && errno != ENOSYS) throw FileError(str("rename ", from.string(), " to"), to, errno);
  // The file system does not support the flag. rename() alone replaces files and empty folders.
  if (::rename(from.c_str(), to.c_str()) != 0) throw FileError(str("rename ", from.string(), " to"), to, errno);
}

bool exchange(const fs::path& a, const fs::path& b) {
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS) return false;
  throw FileError(str("exchange ", a.string(), " and"), b, errno);
}

std::string random_nonce() {
  uint64_t value = 0;
  if (::getrandom(&value, sizeof value, 0) != sizeof value)
    throw Error("getrandom failed: the system returned no random bytes");
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace tmamba
