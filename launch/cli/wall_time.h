// Wall-clock times of a run's logs, and the time between two points of the program.
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace tmamba {

// Converts seconds since 1970 to "2026-11-22T03:20:09.123Z" and back. Fractions of a second are optional when reading.
std::string utc_text(double seconds);
std::optional<double> utc_seconds(const std::string& text);

// Seconds since this process was started, including those before main(); 0 if the system does not report it.
double process_age_seconds();

// next() returns the seconds since the previous call.
class Lap {
 public:
  double next() {
    const auto now = Clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
};

}  // namespace tmamba
