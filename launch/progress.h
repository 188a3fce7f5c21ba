// Text for people: numbers in short form, and a progress line that fits a terminal and a log file alike.
#pragma once

#include <cstdint>
#include <string>

namespace tmamba {

std::string fixed(double x, int digits);
std::string scientific(double x);       // "3.00e-04"
std::string count_text(double x);       // "12.3k", "4.56M"
std::string bytes_text(int64_t bytes);  // "1.50 GiB"
std::string duration(double seconds);   // "3:07", "1:02:03"
// Every line indented by four blanks; control characters but newline shown as blanks.
std::string indent(const std::string& text);

// On a terminal the line replaces the progress line before it, elsewhere it is a line of its own. `keep` ends it.
void progress_line(const std::string& text, bool keep = false);
// A line that stays; a progress line in the way is cleared first.
void message_line(const std::string& text);

}  // namespace tmamba
