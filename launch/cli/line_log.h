// class LineLog: a file to which lines or records are appended, each completely or not at all. A line that cannot be
// written (full disk, removed folder) is dropped and counted; it does not end a run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace tmamba {

class LineLog {
 public:
  LineLog() = default;
  // Throws UserError if the file cannot be opened.
  explicit LineLog(const std::filesystem::path& file);
  ~LineLog();
  LineLog(LineLog&& other) noexcept;
  LineLog& operator=(LineLog&& other) noexcept;

  // Appends text and a newline. Reports on standard error when lines begin to be dropped, and when that ends.
  void append(const std::string& text) { append_whole(text + "\n"); }
  // The same for a record of other bytes.
  void append_whole(const std::string& bytes);
  int64_t lost() const { return lost_; }
  // Whether the open file is no longer the one under its name: it was removed, or moved away.
  bool gone() const;

 private:
  std::filesystem::path file_;
  int fd_ = -1;
  int64_t lost_ = 0, lost_in_a_row_ = 0;
};

}  // namespace tmamba
