#include "launch/report/chart.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <regex>

#include "kernels/base/check.h"
#include "kernels/base/rng.h"
#include "launch/report/chart_axis.h"
#include "launch/report/html.h"

namespace tmamba {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Describes the first mismatch among the tags of an XML element; empty if every tag is closed in order.
std::string tag_problem(const std::string& xml) {
  static const std::regex tag(R"(<(/?)([a-zA-Z]+)((?:[^<>"]|"[^<"]*")*?)(/?)>)");
  std::vector<std::string> open;
  size_t brackets = 0;
  for (auto i = std::sregex_iterator(xml.begin(), xml.end(), tag); i != std::sregex_iterator(); ++i) {
    const std::smatch& m = *i;
    ++brackets;
    if (m[1] == "/") {
      if (open.empty() || open.back() != m[2]) return "</" + m[2].str() + "> closes nothing";
      open.pop_back();
    } else if (m[4] != "/") {
      open.push_back(m[2]);
    }
  }
  if (!open.empty()) return "<" + open.back() + "> is not closed";
  return static_cast<size_t>(std::count(xml.begin(), xml.end(), '<')) == brackets ? "" : "there is a < outside a tag";
}

BarChart bars_of(const std::vector<std::string>& bars, const std::vector<BarChart::Part>& parts) {
  BarChart chart;
  chart.title = "time";
  chart.value.label = "ms";
  chart.bars = bars;
  chart.parts = parts;
  return chart;
}

int count_of(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

std::vector<ChartPoint> noise(int64_t count, uint64_t seed) {
  const Philox random(seed, 7);
  std::vector<ChartPoint> points;
  for (int64_t i = 0; i < count; ++i)
    points.push_back({static_cast<double>(i), static_cast<double>(random.words(static_cast<uint64_t>(i))[0]) / 1e9});
  return points;
}

TEST(Chart, TicksAreRoundNumbersThatCoverTheAxis) {
  const ChartScale scale({.label = "y"}, {0.13, 0.87}, 100, 0, true);
  EXPECT_EQ(scale.min(), 0);
  EXPECT_DOUBLE_EQ(scale.max(), 1);
  std::string texts;
  for (const ChartTick& tick : scale.ticks(5)) texts += tick.text + " ";
  EXPECT_EQ(texts, "0 0.2 0.4 0.6 0.8 1.0 ");
  EXPECT_EQ(scale.pixel(0), 100);
  EXPECT_EQ(scale.pixel(1), 0);
  EXPECT_NEAR(scale.pixel(0.25), 75, 1e-9);
}

TEST(Chart, LogTicksAreDecadesAndKeepTheirPlaces) {
  const ChartScale scale({.label = "", .log = true}, {1, 1000, 0, -3, kNan}, 0, 300, false);
  EXPECT_FALSE(scale.drawable(0));
  EXPECT_NEAR(scale.pixel(10), 100, 1e-9);
  std::vector<std::string> texts;
  for (const ChartTick& tick : scale.ticks(5)) {
    if (!tick.text.empty()) texts.push_back(tick.text);
  }
  EXPECT_EQ(texts, (std::vector<std::string>{"1", "10", "100", "1000"}));
}

TEST(Chart, NamedTicksStandWhereTheyAreNamed) {
  const ChartAxis axis{.label = "ranks", .log = true, .ticks = {1, 2, 4, 8, 64}};
  std::string texts;
  for (const ChartTick& tick : ChartScale(axis, {1, 8}, 0, 300, false).ticks(5)) texts += tick.text + " ";
  EXPECT_EQ(texts, "1 2 4 8 ");
}

TEST(Chart, TickTexts) {
  EXPECT_EQ(tick_text(0), "0");
  EXPECT_EQ(tick_text(1234567), "1.23M");
  EXPECT_EQ(tick_text(-25000), "-25k");
  EXPECT_EQ(tick_text(999999), "1M");
  EXPECT_EQ(tick_text(0.00025), "2.5e-4");
  EXPECT_EQ(tick_text(0.5), "0.5");
  EXPECT_EQ(tick_text(8192, 4), "8192");
  EXPECT_EQ(tick_text(kNan), "nan");
}

// Every axis has between 2 and 20 labelled ticks, inside its range, ordered and distinct.
TEST(Chart, EveryAxisGetsDistinctTicks) {
  const Philox random(20, 3);
  for (uint64_t i = 0; i < 4000; ++i) {
    const auto words = random.words(i);
    const double size = std::pow(10.0, static_cast<double>(words[0] % 24) - 9),
                 base = static_cast<double>(words[1] % 1000);
    const bool log = words[2] % 2 == 1;
    const double low = size * (log ? base + 1 : base - 500),
                 high = low + size * static_cast<double>(words[3] % 5000 + 1);
    const ChartScale scale({.label = "", .log = log}, {low, high}, 0, 100, true);
    const std::vector<ChartTick> ticks = scale.ticks(5);
    std::vector<std::string> texts;
    for (size_t t = 0; t < ticks.size(); ++t) {
      EXPECT_GE(scale.pixel(ticks[t].value), -0.01);
      EXPECT_LE(scale.pixel(ticks[t].value), 100.01);
      EXPECT_TRUE(t == 0 || ticks[t - 1].value < ticks[t].value);
      if (!ticks[t].text.empty()) texts.push_back(ticks[t].text);
    }
    const size_t all = texts.size();
    std::sort(texts.begin(), texts.end());
    texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
    ASSERT_EQ(texts.size(), all) << "case " << i << ": " << low << " to " << high << (log ? " log" : "");
    ASSERT_TRUE(all >= 2 && all <= 20) << all << " ticks in case " << i << ": " << low << " to " << high
                                       << (log ? " log" : "");
  }
}

TEST(Chart, ThinningKeepsEveryExtremeAndTheEnds) {
  std::vector<ChartPoint> points = noise(100000, 5);
  points[31337].y = 1e6;
  points[77777].y = -1e6;
  points[50000].y = kNan;
  const std::vector<ChartPoint> kept = thinned(points, 300);
  EXPECT_LE(kept.size(), 300u * 5);
  EXPECT_GE(kept.size(), 300u * 2);
  const auto has = [&](double x) {
    return std::any_of(kept.begin(), kept.end(), [&](const ChartPoint& p) { return p.x == x; });
  };
  for (double x : {0.0, 31337.0, 77777.0, 50000.0, 99999.0}) EXPECT_TRUE(has(x)) << x;
  EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end(), [](auto& a, auto& b) { return a.x < b.x; }));
  // The extremes of each group equal those of all its points.
  for (int64_t group = 0; group < 300; ++group) {
    double all = -1e9, here = -1e9;
    const double from = static_cast<double>(group) * 99999 / 300, to = static_cast<double>(group + 1) * 99999 / 300;
    for (const auto& p : points)
      if (p.x >= from && p.x < to && std::isfinite(p.y)) all = std::max(all, p.y);
    for (const auto& p : kept)
      if (p.x >= from && p.x < to && std::isfinite(p.y)) here = std::max(here, p.y);
    ASSERT_EQ(all, here) << "group " << group;
  }
  const std::vector<ChartPoint> few = noise(10, 6);
  EXPECT_EQ(thinned(few, 300).size(), few.size());
  EXPECT_TRUE(thinned({}, 300).empty());
}

TEST(Chart, MeansAreOfTheFinitePointsOfTheirGroups) {
  const std::vector<ChartPoint> means = averaged({{0, 1}, {1, 3}, {2, kNan}, {3, 5}, {4, 7}}, 2);
  ASSERT_EQ(means.size(), 2u);
  EXPECT_EQ(means[0].x, 0.5);
  EXPECT_EQ(means[0].y, 2);
  EXPECT_EQ(means[1].x, 3.5);
  EXPECT_EQ(means[1].y, 6);
}

TEST(Chart, LinesAreWellFormedAndTheSameEveryTime) {
  const LineChart chart{.title = "loss <&> \"x\"",
                        .x = {.label = "step"},
                        .y = {.label = "nats", .log = true},
                        .series = {{.name = "run <1>", .points = noise(50, 1), .markers = true},
                                   {.name = "it's & co", .points = {{1, 2}, {2, kNan}, {3, 0}, {4, 5}, {5, 6}}},
                                   {.name = "band", .points = {}, .band = {{0, 1, 2}, {10, 1, 3}, {20, 0, 3}}}},
                        .marks = {{5, "restart </svg>"}, {500, "outside"}}};
  const std::string svg = svg_of(chart);
  EXPECT_EQ(tag_problem(svg), "") << svg;
  EXPECT_EQ(svg, svg_of(chart));
  EXPECT_NE(svg.find("2 values are not drawn: not finite, or not over 0 on this axis"), std::string::npos) << svg;
  EXPECT_NE(svg.find("restart &lt;/svg&gt;"), std::string::npos);
  EXPECT_EQ(svg.find("outside"), std::string::npos);
  EXPECT_EQ(count_of(svg, "<circle"), 50);
  EXPECT_EQ(count_of(svg, "class=\"cb\""), 1);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  const std::string file = standalone_svg(svg);
  EXPECT_EQ(tag_problem(file.substr(file.find("<svg"))), "");
  EXPECT_EQ(file.find("http"), file.find("http://www.w3.org/2000/svg"));
}

// A value that is not finite breaks the line.
TEST(Chart, LinesBreakAtGaps) {
  const LineChart chart{
      .title = "", .x = {}, .y = {}, .series = {{.name = "", .points = {{0, 1}, {1, 2}, {2, kNan}, {3, 4}, {4, 5}}}}};
  const std::string svg = svg_of(chart);
  const size_t at = svg.find("class=\"cs\"");
  ASSERT_NE(at, std::string::npos);
  const std::string path = svg.substr(at, svg.find("/>", at) - at);
  EXPECT_EQ(count_of(path, "M"), 2) << path;
  EXPECT_EQ(count_of(path, "L"), 2) << path;
}

TEST(Chart, NothingToDrawSaysSo) {
  EXPECT_NE(svg_of(LineChart{}).find("nothing was recorded"), std::string::npos);
  EXPECT_NE(svg_of(bars_of({}, {})).find("nothing was recorded"), std::string::npos);
}

TEST(Chart, BarsStackToTheirSum) {
  const BarChart chart = bars_of({"one", "two"}, {{"compute", {30, 10}}, {"wait", {10, 0}}, {"lost", {kNan, 5}}});
  const std::string svg = svg_of(chart);
  EXPECT_EQ(tag_problem(svg), "") << svg;
  std::vector<double> starts, widths;
  static const std::regex bar(R"re(<rect class="cp c\d" x="([\d.]+)" y="[\d.]+" width="([\d.]+)")re");
  for (auto i = std::sregex_iterator(svg.begin(), svg.end(), bar); i != std::sregex_iterator(); ++i) {
    starts.push_back(std::stod((*i)[1]));
    widths.push_back(std::stod((*i)[2]));
  }
  ASSERT_EQ(starts.size(), 4u) << svg;
  EXPECT_NEAR(widths[0], 3 * widths[1], 0.2);
  EXPECT_NEAR(starts[1], starts[0] + widths[0], 0.11);
  EXPECT_NEAR(widths[2], widths[1], 0.11);
  EXPECT_NE(svg.find(">40</text>"), std::string::npos);
  EXPECT_NE(svg.find("1 value is not drawn"), std::string::npos);
  EXPECT_THROW(svg_of(bars_of({"a"}, {{"p", {1, 2}}})), Error);
}

TEST(Html, EveryTextIsShownAndNoneIsRun) {
  EXPECT_EQ(html_escaped("a<b>&\"'"), "a&lt;b&gt;&amp;&quot;&#39;");
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(html_escaped(std::string("\0\x1b\x7f\n", 4)), bad + bad + bad + "\n");
  EXPECT_EQ(html_escaped("gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x90\x8D"),
            "gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x90\x8D");
  // Truncated, overlong, a surrogate, beyond Unicode, an invalid first byte.
  EXPECT_EQ(html_escaped("\xE2\x82"), bad + bad);
  EXPECT_EQ(html_escaped("\xC0\x80"), bad + bad);
  EXPECT_EQ(html_escaped("\xED\xA0\x80"), bad + bad + bad);
  EXPECT_EQ(html_escaped("\xF4\x90\x80\x80"), bad + bad + bad + bad);
  EXPECT_EQ(html_escaped("\xFFz"), bad + "z");
}

TEST(Html, ShortTextsEndInWholeCharacters) {
  EXPECT_EQ(shortened("abcdef", 6), "abcdef");
  EXPECT_EQ(shortened("abcdefg", 6), "abc...");
  EXPECT_EQ(shortened("\xC3\xBC\xC3\xBC\xC3\xBC\xC3\xBC\xC3\xBC", 4), "\xC3\xBC...");
}

TEST(Html, PagesLoadNothing) {
  const std::string page = html_page("run <a>", "sub", html_section("s & t", html_table({"a", "b"}, {{"1", "2"}})));
  for (const char* outside : {"src=", "href=", "@import", "url("})
    EXPECT_EQ(page.find(outside), std::string::npos) << outside;
  EXPECT_NE(page.find("<title>run &lt;a&gt;</title>"), std::string::npos);
  EXPECT_NE(page.find("<h2>s &amp; t</h2>"), std::string::npos);
}

}  // namespace
}  // namespace tmamba
