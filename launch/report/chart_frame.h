// Shared by all kinds of charts: the frame around the plot, title and legend.
#pragma once

#include <string>
#include <vector>

namespace tmamba::chart_frame {

inline constexpr double kWidth = 480, kTop = 34, kRight = 466, kLegendRow = 17;

// Approximate width of a tick label: fonts differ between browsers.
double text_width(const std::string& text);

struct Key {
  std::string name;
  int colour = 0;
  bool dashed = false;
};
struct Legend {
  std::string svg;
  double height = 0;
};
// Lays out the keys in rows that start at `top`.
Legend legend(const std::vector<Key>& keys, double top);

// "<svg ..." with the title. `attributes` are appended, each with a leading blank. The caller closes it by "</svg>".
std::string begin(const std::string& title, double height, const std::string& attributes);

// <text>: `anchor` is "start", "middle" or "end", `type` a class of chart_style().
std::string text(double x, double y, const std::string& anchor, const std::string& type, const std::string& words);
std::string line(double x1, double y1, double x2, double y2, const std::string& type);
// The CSS class of a colour.
std::string colour_class(int colour);
// The note about values that are not drawn; empty if there are none.
std::string missing_note(size_t missing, bool log);

}  // namespace tmamba::chart_frame
