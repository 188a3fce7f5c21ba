#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

#include "tests/fuzz/target.h"

namespace tmamba::fuzz {

namespace fs = std::filesystem;

namespace {

struct Folder {
  fs::path path;
  Folder() {
    const fs::path memory = "/dev/shm";
    std::string pattern =
        ((fs::is_directory(memory) ? memory : fs::temp_directory_path()) / "tmamba-fuzz-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make the folder " + pattern);
    path = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
};

}  // namespace

const fs::path& scratch_folder() {
  static const Folder folder;
  return folder.path;
}

fs::path scratch_file(const std::string& name, const std::string& bytes) {
  fs::path path = scratch_folder() / name;
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  const bool written = fd >= 0 && ::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
  if (fd < 0 || ::close(fd) != 0 || !written) throw std::runtime_error("cannot write " + path.string());
  return path;
}

}  // namespace tmamba::fuzz
