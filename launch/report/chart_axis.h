// Scales of charts: from numbers to pixels, and where their ticks are.
#pragma once

#include <string>
#include <vector>

#include "launch/report/chart.h"

namespace tmamba {

struct ChartTick {
  double value = 0;
  std::string text;  // empty: a line without a number
};

// An axis fitted to what is drawn on it.
class ChartScale {
 public:
  // `values`: all that the axis must hold; those that are not finite, or not over 0 on a logarithmic axis, are left
  // out. Ends are round numbers where the axis does not fix them and `round` is set. `from`, `to`: pixels of the ends.
  ChartScale(const ChartAxis& axis, const std::vector<double>& values, double from, double to, bool round);

  bool drawable(double value) const;
  bool inside(double value) const { return drawable(value) && value >= min_ && value <= max_; }
  double pixel(double value) const;
  // Those the axis names, or about `count` of them.
  std::vector<ChartTick> ticks(int count) const;

  bool log() const { return log_; }
  double min() const { return min_; }
  double max() const { return max_; }

 private:
  bool log_;
  double min_ = 0, max_ = 1, from_, to_;
  std::vector<double> named_;
};

// A number of pixels, shortest text with one decimal.
std::string pixels(double x);

}  // namespace tmamba
