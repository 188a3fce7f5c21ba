// print_line: writes a line to standard error.
#pragma once

#include <unistd.h>

#include <string>

namespace tmamba {

// Uses one write() call, so that lines of different ranks and threads do not interleave.
inline void print_line(const std::string& line) {
  const std::string text = line + "\n";
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(STDERR_FILENO, text.data() + done, text.size() - done);
    if (n <= 0) return;
    done += static_cast<size_t>(n);
  }
}

}  // namespace tmamba
