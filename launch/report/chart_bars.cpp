// Stacked bars.
#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"
#include "launch/report/chart.h"
#include "launch/report/chart_axis.h"
#include "launch/report/chart_frame.h"
#include "launch/report/html.h"

namespace tmamba {

namespace {

using namespace chart_frame;

constexpr double kBar = 20, kPitch = 29;

double drawn_value(double value) { return std::isfinite(value) && value > 0 ? value : 0; }

double total(const BarChart& chart, size_t bar) {
  double sum = 0;
  for (const BarChart::Part& part : chart.parts) sum += drawn_value(part.values[bar]);
  return sum;
}

std::string bar_of(const BarChart& chart, size_t bar, const ChartScale& scale, double top) {
  std::string out;
  double sum = 0;
  for (size_t i = 0; i < chart.parts.size(); ++i) {
    const BarChart::Part& part = chart.parts[i];
    const double value = drawn_value(part.values[bar]);
    if (value == 0) continue;
    const double from = scale.pixel(sum), to = scale.pixel(sum += value);
    out += str("<rect class=\"cp ", colour_class(part.colour >= 0 ? part.colour : static_cast<int>(i)), "\" x=\"",
               pixels(from), "\" y=\"", pixels(top), "\" width=\"", pixels(std::max(0.3, to - from)), "\" height=\"",
               pixels(kBar), "\"><title>", html_escaped(part.name), ": ", tick_text(value, 4), "</title></rect>");
  }
  return out + "\n" + text(scale.pixel(sum) + 5, top + 14, "start", "cw", tick_text(sum));
}

}  // namespace

std::string svg_of(const BarChart& chart) {
  std::vector<double> totals{0};
  size_t missing = 0;
  for (const BarChart::Part& part : chart.parts) {
    TM_CHECK(part.values.size() == chart.bars.size(), "part \"", part.name, "\" of a chart has ", part.values.size(),
             " values for ", chart.bars.size(), " bars");
    missing += static_cast<size_t>(
        std::count_if(part.values.begin(), part.values.end(), [](double v) { return !std::isfinite(v); }));
  }
  double widest = 0, number = 0;
  std::vector<std::string> names;
  for (size_t bar = 0; bar < chart.bars.size(); ++bar) {
    totals.push_back(total(chart, bar));
    number = std::max(number, text_width(tick_text(totals.back())));
    names.push_back(shortened(chart.bars[bar], 26));
    widest = std::max(widest, text_width(names.back()));
  }
  const double left = 12 + widest, top = kTop - 4;
  const double bottom = top + kPitch * static_cast<double>(std::max<size_t>(1, names.size()));
  ChartAxis axis = chart.value;
  axis.log = false;
  axis.min = 0;
  const ChartScale scale(axis, totals, left, kRight - number - 8, true);
  std::string body;
  for (const ChartTick& tick : scale.ticks(5)) {
    const double x = scale.pixel(tick.value);
    body += line(x, top, x, bottom, "cg") + text(x, bottom + 15, "middle", "ca", tick.text);
  }
  for (size_t bar = 0; bar < names.size(); ++bar) {
    const double y = top + kPitch * static_cast<double>(bar) + (kPitch - kBar) / 2;
    body += text(left - 6, y + 14, "end", "cl", names[bar]) + bar_of(chart, bar, scale, y);
  }
  if (names.empty()) body += text(kWidth / 2, top + 16, "middle", "cn", "nothing was recorded");
  body += line(left, top, left, bottom, "cx");
  body += text((left + kRight) / 2, bottom + 30, "middle", "ca", chart.value.label);
  std::vector<Key> keys;
  for (size_t i = 0; i < chart.parts.size(); ++i) {
    keys.push_back({chart.parts[i].name, chart.parts[i].colour >= 0 ? chart.parts[i].colour : static_cast<int>(i)});
  }
  const double axis_end = bottom + (chart.value.label.empty() ? 20 : 36);
  const Legend rows = legend(keys, axis_end);
  const std::string note = missing_note(missing, false);
  const double height = axis_end + rows.height + (note.empty() ? 2 : 17);
  std::string out = begin(chart.title, height, "") + body + rows.svg;
  if (!note.empty()) out += text(8, height - 5, "start", "cn", note);
  return out + "</svg>\n";
}

}  // namespace tmamba
