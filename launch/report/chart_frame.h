// What all kinds of charts share: the frame around the plot, its title and legend.
#pragma once

#include <string>
#include <vector>

namespace tmamba::chart_frame {

inline constexpr double kWidth = 480, kTop = 34, kRight = 466, kLegendRow = 17;

// Width of text of the tick labels, about: browsers differ in their fonts.
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
// Rows of keys from `top` on, as many in a row as fit.
Legend legend(const std::vector<Key>& keys, double top);

// "<svg ..." with the title; `attributes` are further ones, with a blank before each. Closed by "</svg>".
std::string begin(const std::string& title, double height, const std::string& attributes);

// <text>: `anchor` is "start", "middle" or "end", `type` a class of chart_style().
std::string text(double x, double y, const std::string& anchor, const std::string& type, const std::string& words);
std::string line(double x1, double y1, double x2, double y2, const std::string& type);
// Class that gives the colour.
std::string colour_class(int colour);
// The note about what is not drawn; empty where that is nothing.
std::string missing_note(size_t missing, bool log);

}  // namespace tmamba::chart_frame
