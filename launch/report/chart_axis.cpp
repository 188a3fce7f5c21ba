#include "launch/report/chart_axis.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>

namespace tmamba {

namespace {

// The smallest of 1, 2, 5 times a power of ten that divides `span` into at most `count` parts.
double round_step(double span, int count) {
  const double rough = span / count, power = std::pow(10.0, std::floor(std::log10(rough)));
  for (double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= rough * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

// Decimals needed to distinguish multiples of `step`.
int decimals_of(double step) { return std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9))); }

std::string formatted(const char* format, int digits, double x) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), format, digits, x);
  return text.data();
}

std::string without_trailing_zeros(std::string text) {
  if (text.find('.') == std::string::npos) return text;
  while (text.back() == '0') text.pop_back();
  if (text.back() == '.') text.pop_back();
  return text;
}

// A tick at a multiple of `step`.
std::string text_of_tick(double value, double step) {
  const double size = std::abs(value);
  if (size < step / 2) return "0";
  if (size >= 1e4 || step < 1e-4) {
    const double ratio = std::max(1.0, size / step);
    return tick_text(value, std::clamp(static_cast<int>(std::ceil(std::log10(ratio) - 1e-9)) + 1, 1, 9));
  }
  return formatted("%.*f", decimals_of(step), value);
}

}  // namespace

std::string tick_text(double x, int digits) {
  const double size = std::abs(x);
  if (!std::isfinite(x)) return x > 0 ? "inf" : x < 0 ? "-inf" : "nan";
  if (size == 0) return "0";
  if (size < 1e-3 || size >= 1e15) {
    std::string text = formatted("%.*e", std::max(0, digits - 1), x);
    const size_t exponent = text.find('e');
    const int power = std::atoi(text.c_str() + exponent + 1);
    return without_trailing_zeros(text.substr(0, exponent)) + "e" + std::to_string(power);
  }
  constexpr std::array<const char*, 5> units{"", "k", "M", "G", "T"};
  size_t unit = 0;
  double scaled = x;
  // Half a unit of the last digit below the next unit rounds up to it.
  const double limit = 1000 * (1 - 0.5 * std::pow(10.0, -digits));
  while (size >= 1e4 * (1 - 1e-12) && std::abs(scaled) >= limit && unit + 1 < units.size()) scaled /= 1000, ++unit;
  const int whole = static_cast<int>(std::floor(std::log10(std::abs(scaled)))) + 1;
  return without_trailing_zeros(formatted("%.*f", std::max(0, digits - whole), scaled)) + units[unit];
}

std::string pixels(double x) {
  // -0.04 must not become "-0".
  const double tenths = std::round(x * 10);
  return without_trailing_zeros(formatted("%.*f", 1, tenths == 0 ? 0 : tenths / 10));
}

ChartScale::ChartScale(const ChartAxis& axis, const std::vector<double>& values, double from, double to, bool round)
    : log_(axis.log), from_(from), to_(to), named_(axis.ticks) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (double value : values) {
    if (!drawable(value)) continue;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  if (axis.min && drawable(*axis.min)) low = *axis.min;
  if (axis.max && drawable(*axis.max)) high = *axis.max;
  if (!(low <= high)) {  // no data, or a fixed end beyond all data
    low = std::isfinite(low) ? low : std::isfinite(high) ? high : log_ ? 1 : 0;
    high = low;
  }
  if (low == high) {
    const double margin = log_ ? 0 : low == 0 ? 1 : std::abs(low) * 0.1;
    if (!axis.min) low = log_ ? low / 2 : low - margin;
    if (!axis.max) high = log_ ? high * 2 : high + margin;
    if (low == high) high = log_ ? low * 10 : low + 1;
  }
  min_ = low;
  max_ = high;
  if (!round) return;
  if (log_) {
    // Whole decades would leave most of a narrow chart empty.
    const double margin = std::pow(max_ / min_, 0.04);
    if (!axis.min) min_ /= margin;
    if (!axis.max) max_ *= margin;
    return;
  }
  const double step = round_step(max_ - min_, 5);
  if (!axis.min) min_ = std::floor(min_ / step + 1e-9) * step;
  if (!axis.max) max_ = std::ceil(max_ / step - 1e-9) * step;
}

bool ChartScale::drawable(double value) const { return std::isfinite(value) && (!log_ || value > 0); }

double ChartScale::pixel(double value) const {
  const double part = log_ ? std::log(value / min_) / std::log(max_ / min_) : (value - min_) / (max_ - min_);
  return from_ + (to_ - from_) * part;
}

std::vector<ChartTick> ChartScale::ticks(int count) const {
  std::vector<ChartTick> ticks;
  for (double value : named_) {
    if (inside(value)) ticks.push_back({value, tick_text(value, 4)});
  }
  if (!named_.empty()) return ticks;
  if (log_ && max_ / min_ >= 8) {
    const double decades = std::log10(max_ / min_);
    const int every = std::max(1, static_cast<int>(std::ceil(decades / count)));
    const int first = static_cast<int>(std::floor(std::log10(min_))), last = static_cast<int>(std::log10(max_)) + 1;
    for (int power = first; power <= last; ++power) {
      for (int digit = 1; digit < 10; ++digit) {
        const double value = digit * std::pow(10.0, power);
        if (value < min_ * (1 - 1e-9) || value > max_ * (1 + 1e-9)) continue;
        const bool numbered = digit == 1 ? power % every == 0 : decades < 2.2 && (digit == 2 || digit == 5);
        if (numbered || decades < 4) ticks.push_back({value, numbered ? tick_text(value) : ""});
      }
    }
    return ticks;
  }
  const double step = round_step(max_ - min_, count);
  for (auto i = static_cast<int64_t>(std::ceil(min_ / step - 1e-6));
       static_cast<double>(i) * step <= max_ + step * 1e-6; ++i) {
    const double value = static_cast<double>(i) * step;
    if (log_ && value <= 0) continue;
    ticks.push_back({value, text_of_tick(value, step)});
  }
  return ticks;
}

}  // namespace tmamba
