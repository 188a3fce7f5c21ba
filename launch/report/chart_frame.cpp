#include "launch/report/chart_frame.h"

#include "kernels/base/check.h"
#include "launch/report/chart.h"
#include "launch/report/chart_axis.h"
#include "launch/report/html.h"

namespace tmamba {

namespace chart_frame {

double text_width(const std::string& text) { return 6.4 * static_cast<double>(text.size()); }

std::string colour_class(int colour) { return str("c", (colour % kChartColours + kChartColours) % kChartColours); }

std::string text(double x, double y, const std::string& anchor, const std::string& type, const std::string& words) {
  return str("<text class=\"", type, "\" x=\"", pixels(x), "\" y=\"", pixels(y), "\" text-anchor=\"", anchor, "\">",
             html_escaped(words), "</text>\n");
}

std::string line(double x1, double y1, double x2, double y2, const std::string& type) {
  return str("<path class=\"", type, "\" d=\"M", pixels(x1), ",", pixels(y1), "L", pixels(x2), ",", pixels(y2),
             "\"/>\n");
}

std::string begin(const std::string& title, double height, const std::string& attributes) {
  return str("<svg class=\"chart\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", pixels(kWidth), " ",
             pixels(height), "\" role=\"img\" aria-label=\"", html_escaped(title), "\"", attributes, ">\n",
             text(4, 17, "start", "ct", title));
}

Legend legend(const std::vector<Key>& keys, double top) {
  constexpr double kLeft = 8, kSwatch = 16, kGap = 14;
  Legend out;
  double x = kLeft;
  for (const Key& key : keys) {
    const std::string name = shortened(key.name, 60);
    const double width = kSwatch + text_width(name) + kGap;
    if (x > kLeft && x + width - kGap > kRight) x = kLeft, out.height += kLegendRow;
    const double y = top + out.height + 11;
    out.svg += str("<g class=\"", colour_class(key.colour), "\">",
                   line(x, y - 4, x + 11, y - 4, key.dashed ? "ck cd" : "ck"), "</g>");
    out.svg += text(x + kSwatch, y, "start", "cl", name);
    x += width;
  }
  if (!keys.empty()) out.height += kLegendRow;
  return out;
}

std::string missing_note(size_t missing, bool log) {
  if (missing == 0) return "";
  return str(missing, missing == 1 ? " value is" : " values are", " not drawn: not finite",
             log ? ", or not over 0 on this axis" : "");
}

}  // namespace chart_frame

std::string chart_style() {
  // c0 .. c7 are distinguishable with colour vision deficiency, and in grey by lightness.
  return R"(
.c0{--c:#0b62b0}.c1{--c:#c8500a}.c2{--c:#0d8a63}.c3{--c:#b0569b}.c4{--c:#c08a00}.c5{--c:#3aa0d8}.c6{--c:#6b7280}.c7{--c:#7a4b2a}
@media(prefers-color-scheme:dark){.c0{--c:#6ab0f3}.c1{--c:#ff9457}.c2{--c:#4ccfa0}.c3{--c:#e59ad2}.c4{--c:#f0c24b}.c5{--c:#8fd3f7}.c6{--c:#a3acba}.c7{--c:#d3a680}}
svg.chart{display:block;width:100%;height:auto;font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.ct{font-size:13.5px;font-weight:650;fill:var(--text,#1d2330)}
.ca,.cl,.cn{font-size:11.5px;fill:var(--soft,#5c6675)}
.cl{fill:var(--text,#1d2330)}
.cn{font-style:italic}
.cg{fill:none;stroke:var(--rule,#dfe3ea);stroke-width:1}
.cx{fill:none;stroke:var(--soft,#5c6675);stroke-width:1}
.cs{fill:none;stroke:var(--c);stroke-width:1.7;stroke-linejoin:round}
.cf{stroke-width:1;opacity:.32}
.cd{stroke-dasharray:5 4}
.cb{fill:var(--c);opacity:.2;stroke:none}
.cp{fill:var(--c);stroke:none}
.ck{stroke:var(--c);stroke-width:3.2;fill:none}
.cm{fill:none;stroke:var(--bad,#b3261e);stroke-width:1;stroke-dasharray:2 3}
.cw{fill:var(--text,#1d2330);font-size:11px}
.tip{pointer-events:none}.tip line{stroke:var(--soft,#5c6675);stroke-width:1}.tip rect{fill:var(--card,#fff);stroke:var(--rule,#dfe3ea);rx:4px;opacity:.94}.tip text{font-size:11.5px;fill:var(--text,#1d2330)}
)";
}

std::string standalone_svg(const std::string& svg) {
  const size_t end = svg.find('>');
  TM_CHECK(svg.rfind("<svg", 0) == 0 && end != std::string::npos, "not an <svg> element: ", svg.substr(0, 40));
  return str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n", svg.substr(0, end + 1), "\n<style>", chart_style(),
             "</style>", svg.substr(end + 1));
}

}  // namespace tmamba
