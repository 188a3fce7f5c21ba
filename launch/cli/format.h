// Text for people: numbers in short form, and progress lines.
#pragma once

#include <cstdint>
#include <string>

namespace tmamba {

std::string fixed(double x, int digits);
std::string scientific(double x, int digits = 2);  // "3.00e-04"
std::string count_text(double x);                  // "12.3k", "4.56M"
std::string bytes_text(int64_t bytes);             // "1.50 GiB"
std::string duration(double seconds);              // "3:07", "1:02:03"
// Every line indented by four blanks; control characters but newline shown as blanks.
std::string indent(const std::string& text);

// One line to standard output, flushed. Progress is written as whole lines, never over each other: mpirun and batch
// systems give ranks a terminal of their own even where the output ends in a log file.
void message_line(const std::string& text);

}  // namespace tmamba
