// class LineLog: a file that lines, or records, are appended to, each whole or not at all. A line that cannot be
// written - a full disk, a folder that went away - is lost, is counted and is no reason to end a run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace tmamba {

class LineLog {
 public:
  LineLog() = default;
  // Throws UserError where the file cannot be opened.
  explicit LineLog(const std::filesystem::path& file);
  ~LineLog();
  LineLog(LineLog&& other) noexcept;
  LineLog& operator=(LineLog&& other) noexcept;

  // Appends text and a newline. Says on standard error when lines begin to be lost, and when that ends.
  void append(const std::string& text) { append_whole(text + "\n"); }
  // The same for bytes that are no line but must be whole as well.
  void append_whole(const std::string& bytes);
  int64_t lost() const { return lost_; }
  // Whether lines go to a file that is no longer the one under its name: it was removed, or moved away.
  bool gone() const;

 private:
  std::filesystem::path file_;
  int fd_ = -1;
  int64_t lost_ = 0, lost_in_a_row_ = 0;
};

}  // namespace tmamba
