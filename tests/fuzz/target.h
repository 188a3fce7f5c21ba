// Readers of bytes from strangers, as the fuzzers and the test of bad files call them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "kernels/base/check.h"

namespace tmamba::fuzz {

// One kind of file. Both functions read all there is to read and throw Error (or UserError, which is one) where the
// bytes are refused; anything else that leaves them, and any rule that what was read breaks, is a finding.
struct Target {
  const char* name;                                 // of its folder in bad/ and of its dictionary
  void (*bytes)(const std::string& bytes);          // what the fuzzer tries
  void (*file)(const std::filesystem::path& path);  // a file, or a folder, as the program reads it
};

extern const Target config, manifest, checkpoint, safetensors, tokenizer, token_file, hdf5_export;

// A rule that an accepted input breaks: no Error, so that nobody takes it for a refusal.
struct Finding : std::logic_error {
  using std::logic_error::logic_error;
};
inline void require(bool holds, const char* rule) {
  if (!holds) throw Finding(rule);
}

// A folder of this process in memory, removed at its end.
const std::filesystem::path& scratch_folder();
// A file in it with these bytes.
std::filesystem::path scratch_file(const std::string& name, const std::string& bytes);

// Takes numbers off the front of the fuzzer's bytes; zeros after their end.
class Bytes {
 public:
  explicit Bytes(const std::string& bytes) : bytes_(bytes) {}
  uint64_t number(int width) {
    uint64_t x = 0;
    for (int i = 0; i < width; ++i) x = x << 8 | (at_ < bytes_.size() ? static_cast<uint8_t>(bytes_[at_++]) : 0);
    return x;
  }
  // From 0 to below `n`.
  int64_t below(int64_t n) { return static_cast<int64_t>(number(1) % static_cast<uint64_t>(n)); }
  std::string rest() const { return bytes_.substr(at_); }

 private:
  const std::string& bytes_;
  size_t at_ = 0;
};

}  // namespace tmamba::fuzz
