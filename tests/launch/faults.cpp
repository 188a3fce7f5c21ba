// Fault injection: a library that tests preload into transmamba. FAULTS is a folder; a file in it switches a fault on:
//   hold        contains a step. After the process has logged that step or a later one, it removes the file, writes its
//               process id to the file `held` and stops itself (SIGSTOP), until the test resumes it
//   nan-RANK    one GEMM of that rank has a NaN in its result; the file is removed
//   full-disk   writes to files of checkpoints fail with ENOSPC
#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>

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

// The step in a line of metrics.jsonl, which is written by one call; 0 for any other text.
long logged_step(const void* data, size_t bytes) {
  const std::string_view text(static_cast<const char*>(data), bytes);
  const size_t step = text.find("\"step\":");
  if (text.find("\"loss\":") == text.npos || step == text.npos) return 0;
  return std::strtol(std::string(text.substr(step + 7, 20)).c_str(), nullptr, 10);
}

void hold_after(const void* data, size_t bytes) {
  if (folder().empty()) return;
  const long step = logged_step(data, bytes);
  if (step == 0) return;
  const std::string hold = folder() + "/hold", held = folder() + "/held";
  std::FILE* file = std::fopen(hold.c_str(), "r");
  if (file == nullptr) return;
  long first = 0;
  const bool known = std::fscanf(file, "%ld", &first) == 1;
  std::fclose(file);
  if (!known || step < first || unlink(hold.c_str()) != 0) return;
  file = std::fopen((held + ".new").c_str(), "w");
  if (file == nullptr) return;
  std::fprintf(file, "%d\n", getpid());
  std::fclose(file);
  std::rename((held + ".new").c_str(), held.c_str());
  raise(SIGSTOP);
}

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t bytes) {
  static const auto next = original<ssize_t (*)(int, const void*, size_t)>("write");
  if (!no_space(fd)) {
    const ssize_t written = next(fd, data, bytes);
    const int error = errno;
    hold_after(data, bytes);
    errno = error;
    return written;
  }
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
