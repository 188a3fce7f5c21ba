#include "model/schedule.h"

#include <charconv>

#include "kernels/base/check.h"

namespace tmamba {

namespace {

int64_t parse_count(const std::string& digits, const std::string& text) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || value < 0) {
    throw UserError(
        str("TransPoint \"", text, "\" is neither a number of tokens (512) nor a fraction of the sequence (\"1/4\")"));
  }
  return value;
}

}  // namespace

TransPoint parse_transpoint(const std::string& text) {
  const size_t slash = text.find('/');
  if (slash == std::string::npos) return TransPoint::of_tokens(parse_count(text, text));
  const auto point =
      TransPoint::of_fraction(parse_count(text.substr(0, slash), text), parse_count(text.substr(slash + 1), text));
  if (point.denominator == 0 || point.numerator > point.denominator) {
    throw UserError(str("TransPoint \"", text, "\" is not a fraction between 0 and 1"));
  }
  return point;
}

std::string to_string(const TransPoint& point) {
  return point.denominator == 0 ? str(point.numerator) : str(point.numerator, "/", point.denominator);
}

std::vector<int64_t> transpoints(const std::vector<TransPoint>& schedule, int64_t layers, int64_t seq_len) {
  TM_CHECK(!schedule.empty(), "the schedule is empty");
  std::vector<int64_t> points;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const TransPoint& point = schedule[static_cast<size_t>(layer) % schedule.size()];
    const int64_t tokens = point.denominator == 0 ? point.numerator : seq_len * point.numerator / point.denominator;
    if (tokens > seq_len) {
      throw UserError(str("model.schedule: TransPoint ", to_string(point), " is over the sequence length ", seq_len,
                          "; lower it, raise data.seq_len, or write it as a fraction such as \"1/4\""));
    }
    points.push_back(tokens);
  }
  return points;
}

}  // namespace tmamba
