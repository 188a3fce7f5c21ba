// Wall-clock times of a run's logs, and the time between two points of the program.
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace tmamba {

// "2026-11-22T03:20:09.123Z" of seconds since 1970, and back. Also reads times without fractions of a second.
std::string utc_text(double seconds);
std::optional<double> utc_seconds(const std::string& text);

// Seconds since this process was started, also those before main(). 0 where the system does not tell.
double process_age_seconds();

// Seconds from one next() to the following.
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
