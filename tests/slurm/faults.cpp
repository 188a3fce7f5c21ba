// A library that makes a machine go wrong when it is told to, preloaded into the ranks of a chaos run. FAULTS is a
// folder; a file there switches a fault on:
//   nan-RANK    one matrix product of that rank has a NaN in its result; the file is removed
//   full-disk   nothing more can be written into checkpoints
#include <dlfcn.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

namespace {

const std::string& folder() {
  static const std::string path = [] {
    const char* value = std::getenv("FAULTS");
    return std::string(value != nullptr ? value : "");
  }();
  return path;
}

template <class Function>
Function original(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

bool take_nan() {
  static const std::string file = [] {
    const char* rank = std::getenv("PMIX_RANK");
    return folder() + "/nan-" + (rank != nullptr ? rank : "none");
  }();
  return !folder().empty() && unlink(file.c_str()) == 0;
}

bool no_space(int fd) {
  if (folder().empty() || access((folder() + "/full-disk").c_str(), F_OK) != 0) return false;
  char path[4096];
  const ssize_t length = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof path - 1);
  if (length <= 0) return false;
  path[length] = '\0';
  return std::strstr(path, "/checkpoints/") != nullptr;
}

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t bytes) {
  static const auto next = original<ssize_t (*)(int, const void*, size_t)>("write");
  if (!no_space(fd)) return next(fd, data, bytes);
  errno = ENOSPC;
  return -1;
}

ssize_t pwrite(int fd, const void* data, size_t bytes, off_t at) {
  static const auto next = original<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite");
  if (!no_space(fd)) return next(fd, data, bytes, at);
  errno = ENOSPC;
  return -1;
}

ssize_t pwrite64(int fd, const void* data, size_t bytes, off64_t at) { return pwrite(fd, data, bytes, at); }

void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda,
                 const float* b, int ldb, float beta, float* c, int ldc) {
  static const auto next =
      original<void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int)>(
          "cblas_sgemm");
  next(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  if (take_nan()) *c = std::numeric_limits<float>::quiet_NaN();
}

}  // extern "C"
