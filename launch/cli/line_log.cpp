#include "launch/cli/line_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "kernels/base/check.h"

namespace tmamba {

LineLog::LineLog(const std::filesystem::path& file)
    : file_(file), fd_(::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
  if (fd_ < 0) {
    throw UserError(
        str("run.dir: cannot write in ", file.parent_path().string(), ": ", std::generic_category().message(errno)));
  }
}

LineLog::~LineLog() {
  if (fd_ >= 0) ::close(fd_);
}

LineLog::LineLog(LineLog&& other) noexcept { *this = std::move(other); }

LineLog& LineLog::operator=(LineLog&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(fd_, other.fd_);
  std::swap(lost_, other.lost_);
  std::swap(lost_in_a_row_, other.lost_in_a_row_);
  return *this;
}

bool LineLog::gone() const {
  struct stat ours {
  }, named{};
  if (fd_ < 0 || ::fstat(fd_, &ours) != 0) return false;
  if (::stat(file_.c_str(), &named) != 0) return errno == ENOENT || errno == ENOTDIR;
  return ours.st_ino != named.st_ino || ours.st_dev != named.st_dev;
}

void LineLog::append_whole(const std::string& line) {
  struct stat info {};
  const bool known = ::fstat(fd_, &info) == 0;
  const ssize_t written = ::write(fd_, line.data(), line.size());
  if (written == static_cast<ssize_t>(line.size())) {
    if (lost_in_a_row_ > 0) {
      std::fprintf(stderr, "%s: can be written again; %lld lines were lost\n", file_.c_str(),
                   static_cast<long long>(std::exchange(lost_in_a_row_, 0)));
    }
    return;
  }
  const int code = written < 0 ? errno : ENOSPC;
  // A partial line would make the next one unreadable too.
  if (known && written > 0 && ::ftruncate(fd_, info.st_size) != 0) {
    std::fprintf(stderr, "%s: a partly written line could not be removed\n", file_.c_str());
  }
  ++lost_;
  if (lost_in_a_row_++ == 0) {
    std::fprintf(stderr, "cannot write %s: %s; its lines are lost until it can be written again\n", file_.c_str(),
                 std::generic_category().message(code).c_str());
  }
}

}  // namespace tmamba
