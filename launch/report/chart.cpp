#include "launch/report/chart.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "kernels/base/check.h"
#include "launch/report/chart_axis.h"
#include "launch/report/chart_frame.h"
#include "launch/report/html.h"

namespace tmamba {

namespace {

constexpr double kPlotHeight = 186;

struct Frame {
  ChartScale x, y;
  double left, bottom;
};

std::vector<double> all_x(const LineChart& chart) {
  std::vector<double> values;
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& p : series.points) values.push_back(p.x);
    for (const ChartBand& b : series.band) values.push_back(b.x);
  }
  return values;
}

std::vector<double> all_y(const LineChart& chart) {
  std::vector<double> values;
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& p : series.points) values.push_back(p.y);
    for (const ChartBand& b : series.band) values.insert(values.end(), {b.low, b.high});
  }
  return values;
}

// Both scales. The plot begins right of the widest label of the y axis.
Frame fit(const LineChart& chart) {
  using namespace chart_frame;
  const double bottom = kTop + 12 + kPlotHeight;
  const ChartScale y(chart.y, all_y(chart), bottom, kTop + 12, true);
  double widest = 0;
  for (const ChartTick& tick : y.ticks(5)) widest = std::max(widest, text_width(tick.text));
  const double left = 14 + std::max(24.0, widest);
  return {ChartScale(chart.x, all_x(chart), left, kRight, false), y, left, bottom};
}

std::string grid(const Frame& frame) {
  using namespace chart_frame;
  std::string out;
  const double top = frame.y.pixel(frame.y.max());
  for (const ChartTick& tick : frame.y.ticks(5)) {
    const double y = frame.y.pixel(tick.value);
    if (tick.text.empty()) continue;
    out += line(frame.left, y, kRight, y, "cg") + text(frame.left - 6, y + 4, "end", "ca", tick.text);
  }
  double free_from = 0;  // labels must not overlap
  for (const ChartTick& tick : frame.x.ticks(6)) {
    const double x = frame.x.pixel(tick.value), half = text_width(tick.text) / 2;
    out += line(x, frame.bottom, x, frame.bottom + (tick.text.empty() ? 3 : 5), "cx");
    if (tick.text.empty() || x - half < free_from) continue;
    out += line(x, top, x, frame.bottom, "cg");
    // The last label must stay inside the chart.
    const bool last = x + half > kWidth - 2;
    out += text(last ? kWidth - 2 : x, frame.bottom + 17, last ? "end" : "middle", "ca", tick.text);
    free_from = x + half + 6;
  }
  return out + line(frame.left, frame.bottom, kRight, frame.bottom, "cx");
}

std::string line_path(const Frame& frame, const std::vector<ChartPoint>& points) {
  std::string path;
  bool pen_down = false;
  for (const ChartPoint& p : points) {
    const bool drawn = frame.x.drawable(p.x) && frame.y.drawable(p.y);
    if (drawn) path += (pen_down ? "L" : "M") + pixels(frame.x.pixel(p.x)) + "," + pixels(frame.y.pixel(p.y));
    pen_down = drawn;
  }
  return path;
}

// Bands whose ends can both be drawn; the area between consecutive ones is filled.
std::string band_path(const Frame& frame, const std::vector<ChartBand>& band) {
  std::string path;
  const auto drawn = [&](const ChartBand& b) {
    return frame.x.drawable(b.x) && frame.y.drawable(b.low) && frame.y.drawable(b.high);
  };
  for (size_t begin = 0; begin < band.size();) {
    size_t end = begin;
    while (end < band.size() && drawn(band[end])) ++end;
    std::string upper, lower;
    for (size_t i = begin; i < end; ++i) {
      const std::string x = pixels(frame.x.pixel(band[i].x));
      upper += (i == begin ? "M" : "L") + x + "," + pixels(frame.y.pixel(band[i].high));
      lower = "L" + x + "," + pixels(frame.y.pixel(band[i].low)) + lower;
    }
    if (end > begin) path += upper + lower + "Z";
    begin = end + 1;
  }
  return path;
}

std::string dots(const Frame& frame, const ChartSeries& series) {
  std::string out;
  for (const ChartPoint& p : series.points) {
    if (!frame.x.drawable(p.x) || !frame.y.drawable(p.y)) continue;
    out += str("<circle class=\"cp\" cx=\"", pixels(frame.x.pixel(p.x)), "\" cy=\"", pixels(frame.y.pixel(p.y)),
               "\" r=\"2.8\"/>");
  }
  return out;
}

std::string drawn_series(const Frame& frame, const ChartSeries& series, int colour) {
  std::string out = "<g class=\"" + chart_frame::colour_class(colour) + "\">";
  if (const std::string path = band_path(frame, series.band); !path.empty()) {
    out += "<path class=\"cb\" d=\"" + path + "\"/>";
  }
  const std::string path = series.line || series.markers ? line_path(frame, series.points) : "";
  if (!path.empty()) {
    // The page's script reads values from lines with a name; faint lines have none.
    const std::string name = series.faint ? "" : str(" data-n=\"", html_escaped(shortened(series.name, 40)), "\"");
    out += str("<path class=\"cs", series.faint ? " cf" : "", series.dashed ? " cd" : "", "\"",
               series.line ? "" : " style=\"stroke:none\"", name, " d=\"", path, "\"/>");
  }
  if (series.markers) out += dots(frame, series);
  return out + "</g>\n";
}

size_t count_missing(const Frame& frame, const LineChart& chart) {
  size_t missing = 0;
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& p : series.points) missing += !frame.x.drawable(p.x) || !frame.y.drawable(p.y);
  }
  return missing;
}

bool anything_drawn(const LineChart& chart) {
  return std::any_of(chart.series.begin(), chart.series.end(),
                     [](const ChartSeries& s) { return !s.points.empty() || !s.band.empty(); });
}

std::string scale_attribute(const char* name, const ChartScale& scale) {
  char text[160];
  std::snprintf(text, sizeof text, " data-%s=\"%.9g %.9g %s %s %d\"", name, scale.min(), scale.max(),
                pixels(scale.pixel(scale.min())).c_str(), pixels(scale.pixel(scale.max())).c_str(),
                scale.log() ? 1 : 0);
  return text;
}

// Everything inside the axes, clipped at their ends.
std::string plot(const Frame& frame, const LineChart& chart) {
  constexpr double kMargin = 3;
  const double top = frame.y.pixel(frame.y.max());
  const std::string x = pixels(frame.left - kMargin), y = pixels(top - kMargin),
                    width = pixels(chart_frame::kRight - frame.left + 2 * kMargin),
                    height = pixels(frame.bottom - top + 2 * kMargin);
  std::string out = str("<svg x=\"", x, "\" y=\"", y, "\" width=\"", width, "\" height=\"", height, "\" viewBox=\"", x,
                        " ", y, " ", width, " ", height, "\">\n");
  for (const ChartMark& mark : chart.marks) {
    if (!frame.x.inside(mark.x)) continue;
    const double at = frame.x.pixel(mark.x);
    out += str("<g><title>", html_escaped(mark.label), "</title>", chart_frame::line(at, top, at, frame.bottom, "cm"),
               "</g>\n");
  }
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const ChartSeries& series = chart.series[i];
    out += drawn_series(frame, series, series.colour >= 0 ? series.colour : static_cast<int>(i));
  }
  return out + "</svg>\n";
}

// Calls f(the points of one group) for each group that has any.
template <class F>
void each_group(const std::vector<ChartPoint>& points, int64_t groups, F&& f) {
  if (points.empty()) return;
  TM_CHECK(groups > 0, "points cannot be put into ", groups, " groups");
  const double begin = points.front().x, span = points.back().x - begin;
  const auto group_of = [&](const ChartPoint& p) {
    return span > 0 ? std::min(groups - 1, static_cast<int64_t>((p.x - begin) / span * static_cast<double>(groups)))
                    : int64_t{0};
  };
  for (size_t first = 0; first < points.size();) {
    size_t end = first + 1;
    while (end < points.size() && group_of(points[end]) == group_of(points[first])) ++end;
    f(points.begin() + static_cast<std::ptrdiff_t>(first), points.begin() + static_cast<std::ptrdiff_t>(end));
    first = end;
  }
}

}  // namespace

std::string svg_of(const LineChart& chart) {
  using namespace chart_frame;
  const Frame frame = fit(chart);
  std::vector<Key> keys;
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const ChartSeries& s = chart.series[i];
    if (!s.name.empty()) keys.push_back({s.name, s.colour >= 0 ? s.colour : static_cast<int>(i), s.dashed});
  }
  if (keys.size() == 1) keys.clear();  // the title suffices
  const double axis_end = frame.bottom + (chart.x.label.empty() ? 22 : 37);
  const Legend rows = legend(keys, axis_end);
  const std::string note = missing_note(count_missing(frame, chart), chart.y.log || chart.x.log);
  const double height = axis_end + rows.height + (note.empty() ? 2 : 17);
  std::string out = begin(chart.title, height,
                          scale_attribute("x", frame.x) + scale_attribute("y", frame.y) +
                              str(" data-xname=\"", html_escaped(chart.x.label), "\""));
  out += text(4, kTop + 1, "start", "ca", chart.y.label) + grid(frame);
  out += text((frame.left + kRight) / 2, frame.bottom + 32, "middle", "ca", chart.x.label);
  if (!anything_drawn(chart)) {
    out += text((frame.left + kRight) / 2, frame.bottom - kPlotHeight / 2, "middle", "cn", "nothing was recorded");
  }
  out += plot(frame, chart) + rows.svg;
  if (!note.empty()) out += text(8, height - 5, "start", "cn", note);
  return out + "</svg>\n";
}

std::vector<ChartPoint> thinned(const std::vector<ChartPoint>& points, int64_t groups) {
  std::vector<ChartPoint> kept;
  each_group(points, groups, [&](auto first, auto end) {
    auto low = end, high = end;
    bool broken = false;
    for (auto p = first; p != end; ++p) {
      broken = broken || !std::isfinite(p->y);
      if (!std::isfinite(p->y)) continue;
      if (low == end || p->y < low->y) low = p;
      if (high == end || p->y > high->y) high = p;
    }
    std::vector<decltype(first)> chosen{first, end - 1};
    if (low != end) chosen.insert(chosen.end(), {low, high});
    // Keep one value that is not finite, so that the line stays broken there.
    if (broken) chosen.push_back(std::find_if(first, end, [](const ChartPoint& p) { return !std::isfinite(p.y); }));
    std::sort(chosen.begin(), chosen.end());
    chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
    for (auto p : chosen) kept.push_back(*p);
  });
  return kept;
}

std::vector<ChartPoint> averaged(const std::vector<ChartPoint>& points, int64_t groups) {
  std::vector<ChartPoint> means;
  each_group(points, groups, [&](auto first, auto end) {
    ChartPoint sum;
    double count = 0;
    for (auto p = first; p != end; ++p) {
      if (!std::isfinite(p->y)) continue;
      sum.x += p->x, sum.y += p->y, ++count;
    }
    if (count > 0) means.push_back({sum.x / count, sum.y / count});
  });
  return means;
}

}  // namespace tmamba
