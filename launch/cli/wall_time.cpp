#include "launch/cli/wall_time.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <sstream>

namespace tmamba {

std::string utc_text(double seconds) {
  const double milliseconds = std::round(seconds * 1e3);
  const auto whole = static_cast<std::time_t>(std::floor(milliseconds / 1e3));
  std::tm parts{};
  gmtime_r(&whole, &parts);
  char text[32], out[40];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(out, sizeof out, "%s.%03dZ", text, static_cast<int>(milliseconds - 1e3 * static_cast<double>(whole)));
  return out;
}

std::optional<double> utc_seconds(const std::string& text) {
  std::tm parts{};
  const char* rest = strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (rest == nullptr) return std::nullopt;
  double fraction = 0;
  if (*rest == '.') {
    double place = 0.1;
    for (++rest; *rest >= '0' && *rest <= '9'; ++rest, place /= 10) fraction += place * (*rest - '0');
  }
  if (std::string(rest) != "Z") return std::nullopt;
  return static_cast<double>(timegm(&parts)) + fraction;
}

double process_age_seconds() {
  // The 22nd field of proc(5) stat, counted after the name in parentheses, which may contain spaces.
  std::ifstream in("/proc/self/stat");
  const std::string stat((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const size_t bracket = stat.rfind(')');
  if (bracket == std::string::npos) return 0;
  std::istringstream fields(stat.substr(bracket + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  char* end = nullptr;
  const double ticks = std::strtod(field.c_str(), &end);
  std::timespec now{};
  if (end == field.c_str() || ticks <= 0 || clock_gettime(CLOCK_BOOTTIME, &now) != 0) return 0;
  const double started = ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
  const double age = static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) - started;
  return age > 0 ? age : 0;
}

}  // namespace tmamba
