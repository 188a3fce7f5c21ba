// Charts as SVG text: lines with bands over linear or logarithmic axes, and stacked bars. The same chart gives the same
// bytes. A chart names its colours by class, so that a page (launch/report/html.h) gives them for light and for dark;
// as a file of its own (standalone) it carries them along. Lengths are CSS pixels at the size a chart is drawn for; it
// grows and shrinks with what it stands in.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tmamba {

// Colours there are for series: 0 to kChartColours - 1; further ones begin again.
inline constexpr int kChartColours = 8;

struct ChartPoint {
  double x = 0, y = 0;  // y that is not finite: the line is broken there
};

// An interval of y, for example a confidence interval, filled between neighbours.
struct ChartBand {
  double x = 0, low = 0, high = 0;
};

struct ChartSeries {
  std::string name;  // in the legend; empty: not there
  std::vector<ChartPoint> points;
  std::vector<ChartBand> band = {};
  int colour = -1;  // -1: its place among the series
  bool line = true;
  bool dashed = false;   // for what was predicted, not measured
  bool faint = false;    // behind a smoothed line
  bool markers = false;  // a dot at each point
};

struct ChartAxis {
  std::string label;
  bool log = false;
  // Ends of the axis; without them those of what is drawn.
  std::optional<double> min = {}, max = {};
  // Where ticks are, each with its number; empty: at round numbers.
  std::vector<double> ticks = {};
};

// A vertical line that says what happened there.
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

// Bars of parts on top of each other, lying, each with its name at the left.
struct BarChart {
  struct Part {
    std::string name;
    std::vector<double> values;  // of each bar; at least 0
    int colour = -1;             // -1: its place among the parts
  };
  std::string title;
  ChartAxis value;  // starts at 0; log is not for sums
  std::vector<std::string> bars;
  std::vector<Part> parts;
};

// An <svg> element for a page. What cannot be drawn (not finite, or not over 0 on a logarithmic axis) is counted in a
// note below the chart. Throws Error where a bar chart's parts do not have a value for each bar.
std::string svg_of(const LineChart& chart);
std::string svg_of(const BarChart& chart);

// The same element as an SVG file.
std::string standalone_svg(const std::string& svg);

// CSS rules of the charts' classes, for a page that has several.
std::string chart_style();

// At most 4 points for each of `groups` equal ranges of x: its first, lowest, highest and last one. Drawn over as many
// pixels they look like all points; no extreme is lost. Points must be sorted by x.
std::vector<ChartPoint> thinned(const std::vector<ChartPoint>& points, int64_t groups);

// The mean of the finite points in each of `groups` equal ranges of x, at their mean x. Points must be sorted by x.
std::vector<ChartPoint> averaged(const std::vector<ChartPoint>& points, int64_t groups);

// 1234567 -> "1.23M": at most `digits` significant digits, with a unit from 10,000 on, or a power of ten where small.
std::string tick_text(double x, int digits = 3);

}  // namespace tmamba
