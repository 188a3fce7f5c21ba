// Charts as SVG text: lines with bands over linear or logarithmic axes, and stacked bars. Output is
// deterministic. A chart refers to its colours by CSS class: a page (launch/report/html.h) defines them for light and
// dark mode, a standalone file includes them. Lengths are CSS pixels at the nominal size; a chart scales with its
// container.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tmamba {

// Number of series colours; higher indices wrap around.
inline constexpr int kChartColours = 8;

struct ChartPoint {
  double x = 0, y = 0;  // a y that is not finite breaks the line
};

// An interval of y, for example a confidence interval; the area between neighbours is filled.
struct ChartBand {
  double x = 0, low = 0, high = 0;
};

struct ChartSeries {
  std::string name;  // in the legend; empty: no entry
  std::vector<ChartPoint> points;
  std::vector<ChartBand> band = {};
  int colour = -1;  // -1: the index of the series
  bool line = true;
  bool dashed = false;   // predicted, not measured
  bool faint = false;    // drawn under a smoothed line
  bool markers = false;  // a dot at each point
};

struct ChartAxis {
  std::string label;
  bool log = false;
  // Ends of the axis; default: those of the data.
  std::optional<double> min = {}, max = {};
  // Positions of the ticks; empty: round numbers.
  std::vector<double> ticks = {};
};

// A vertical line with a label.
struct ChartMark {
  double x = 0;
  std::string label;
};

struct LineChart {
  std::string title;
  ChartAxis x, y;
  std::vector<ChartSeries> series;
  std::vector<ChartMark> marks = {};
};

// Horizontal stacked bars, each with its name at the left.
struct BarChart {
  struct Part {
    std::string name;
    std::vector<double> values;  // one per bar; at least 0
    int colour = -1;             // -1: the index of the part
  };
  std::string title;
  ChartAxis value;  // starts at 0; must not be logarithmic
  std::vector<std::string> bars;
  std::vector<Part> parts;
};

// An <svg> element for a page. A note below the chart counts the values that cannot be drawn (not finite, or not
// positive on a logarithmic axis). Throws Error if a part of a bar chart does not have a value for each bar.
std::string svg_of(const LineChart& chart);
std::string svg_of(const BarChart& chart);

// Turns the element into an SVG file.
std::string standalone_svg(const std::string& svg);

// CSS rules of the charts' classes, for pages that embed charts.
std::string chart_style();

// At most 4 points for each of `groups` equal ranges of x: the first, lowest, highest and last one. No extreme is lost.
// Points must be sorted by x.
std::vector<ChartPoint> thinned(const std::vector<ChartPoint>& points, int64_t groups);

// The mean of the finite points in each of `groups` equal ranges of x, at their mean x. Points must be sorted by x.
std::vector<ChartPoint> averaged(const std::vector<ChartPoint>& points, int64_t groups);

// 1234567 -> "1.23M": at most `digits` significant digits, with a unit suffix from 10,000, and an exponent for small
// values.
std::string tick_text(double x, int digits = 3);

}  // namespace tmamba
