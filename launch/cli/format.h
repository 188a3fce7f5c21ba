// Text for people: short forms of numbers, and progress lines.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/bytes_text.h"  // IWYU pragma: export

namespace tmamba {

std::string fixed(double x, int digits);
std::string scientific(double x, int digits = 2);          // "3.00e-04"
std::string count_text(double x);                          // "12.3k", "4.56M"
std::string duration(double seconds);                      // "3:07", "1:02:03"
std::string ranges_text(const std::vector<int>& numbers);  // ascending: "0-3,8,10-11"
std::string ranks_text(const std::vector<int>& ranks);     // "rank 3", "ranks 0-3,8"
// Every line indented by four spaces; control characters except newline become spaces.
std::string indent(const std::string& text);

// Prints one line to standard output and flushes it. Progress never overwrites a line, even on a terminal: mpirun and
// batch systems give ranks a terminal although the output goes to a log file.
void message_line(const std::string& text);

}  // namespace tmamba
