// Readers of untrusted input, as the fuzzers and the test of bad files call them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "kernels/base/check.h"

namespace tmamba::fuzz {

// One kind of file. Both functions read the whole file and throw Error (or its subclass UserError) if they refuse it.
// Any other exception, and any invariant that an accepted input breaks, is a finding.
struct Target {
  const char* name;                                 // of its directory in bad/ and of its dictionary
  void (*bytes)(const std::string& bytes);          // an input of the fuzzer
  void (*file)(const std::filesystem::path& path);  // a file or directory, read as the program does
};

extern const Target config, options, manifest, checkpoint, safetensors, tokenizer, token_file, hdf5_export, corpus;

// Thrown if an accepted input breaks an invariant. Not an Error, so that it does not count as a refusal.
struct Finding : std::logic_error {
  using std::logic_error::logic_error;
};
inline void require(bool holds, const char* rule) {
  if (!holds) throw Finding(rule);
}

// A directory of this process in a memory file system; removed at exit.
const std::filesystem::path& scratch_folder();
// Writes a file with these bytes to it.
std::filesystem::path scratch_file(const std::string& name, const std::string& bytes);

// Takes numbers from the front of the fuzzer's bytes; returns zeros after their end.
class Bytes {
 public:
  explicit Bytes(const std::string& bytes) : bytes_(bytes) {}
  uint64_t number(int width) {
    uint64_t x = 0;
    for (int i = 0; i < width; ++i) x = x << 8 | (at_ < bytes_.size() ? static_cast<uint8_t>(bytes_[at_++]) : 0);
    return x;
  }
  // In [0, n).
  int64_t below(int64_t n) { return static_cast<int64_t>(number(1) % static_cast<uint64_t>(n)); }
  std::string rest() const { return bytes_.substr(at_); }

 private:
  const std::string& bytes_;
  size_t at_ = 0;
};

}  // namespace tmamba::fuzz
