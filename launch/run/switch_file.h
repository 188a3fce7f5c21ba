// class SwitchFile: a file in the run directory by which a user asks the run for something (SAVE, STOP). Rank 0 looks
// for it at every step and removes it when the request is met.
#pragma once

#include <filesystem>

namespace tmamba {

class SwitchFile {
 public:
  SwitchFile(const std::filesystem::path& run, const char* name) : file_(run / name) {}

  // False too where the file system does not answer.
  bool is_set() const {
    std::error_code ignored;
    return std::filesystem::exists(file_, ignored);
  }
  // Prints to standard error when the file cannot be removed.
  void clear() const;

 private:
  std::filesystem::path file_;
};

}  // namespace tmamba
