// Errors and checks: the only error vocabulary of the project.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace tmamba {

// A failure of the run. The program ends with exit code 1.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A mistake in the command line, the configuration or the data, found before the run starts.
// The message says what is wrong, where, and what to do. The program ends with exit code 2.
class UserError : public Error {
 public:
  using Error::Error;
};

// Joins its arguments into one string by operator<<.
template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

[[noreturn]] inline void throw_check_failure(const char* file, int line, const char* condition,
                                             const std::string& message) {
  throw Error(str(file, ":", line, ": ", message, " [check failed: ", condition, "]"));
}

// a / b for b > 0; throws where b does not divide a.
inline int64_t exact_div(int64_t a, int64_t b) {
  if (b <= 0 || a % b != 0) throw Error(str(a, " is not divisible by ", b));
  return a / b;
}

inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline constexpr int64_t round_up(int64_t a, int64_t multiple) { return ceil_div(a, multiple) * multiple; }

}  // namespace tmamba

// TM_CHECK(condition, parts...): throws Error with file, line and the joined parts unless the condition holds.
// Always on, in release builds too.
#define TM_CHECK(condition, ...)                                                                                 \
  do {                                                                                                           \
    if (!(condition)) ::tmamba::throw_check_failure(__FILE__, __LINE__, #condition, ::tmamba::str(__VA_ARGS__)); \
  } while (false)
