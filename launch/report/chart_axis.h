// Scales of charts: map values to pixels and choose ticks.
#pragma once

#include <string>
#include <vector>

#include "launch/report/chart.h"

namespace tmamba {

struct ChartTick {
  double value = 0;
  std::string text;  // empty: a tick without a label
};

// An axis fitted to its data.
class ChartScale {
 public:
  // The axis covers `values`, except those that are not finite, or not positive on a logarithmic axis. With `round`,
  // ends that the axis does not fix are rounded to round numbers. `from`, `to`: pixels of the ends.
  ChartScale(const ChartAxis& axis, const std::vector<double>& values, double from, double to, bool round);

  bool drawable(double value) const;
  bool inside(double value) const { return drawable(value) && value >= min_ && value <= max_; }
  double pixel(double value) const;
  // The ticks that the axis fixes, otherwise about `count`.
  std::vector<ChartTick> ticks(int count) const;

  bool log() const { return log_; }
  double min() const { return min_; }
  double max() const { return max_; }

 private:
  bool log_;
  double min_ = 0, max_ = 1, from_, to_;
  std::vector<double> named_;
};

// Formats a number of pixels with at most one decimal.
std::string pixels(double x);

}  // namespace tmamba
