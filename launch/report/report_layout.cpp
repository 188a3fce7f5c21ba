// Draws the layout of a sequence for the report.
#include <algorithm>
#include <map>

#include "dist/sequence/layout.h"
#include "launch/report/chart_axis.h"
#include "launch/report/chart_frame.h"
#include "launch/report/html.h"
#include "launch/report/report.h"

namespace tmamba {

namespace {

using namespace chart_frame;

constexpr int kMostRows = 64;
constexpr int64_t kMostSegments = 4096;

std::string box(double x1, double x2, double y, double height, int colour, const std::string& title) {
  return str("<rect class=\"cp ", colour_class(colour), "\" x=\"", pixels(x1), "\" y=\"", pixels(y), "\" width=\"",
             pixels(std::max(0.2, x2 - x1)), "\" height=\"", pixels(height), "\"><title>", html_escaped(title),
             "</title></rect>");
}

// Rows of boxes along an axis of tokens.
class TokenRows {
 public:
  TokenRows(int64_t tokens, const std::vector<std::string>& labels)
      : labels_(labels),
        pitch_(labels.size() > 24   ? 9
               : labels.size() > 12 ? 14
                                    : 20),
        left_(left_of(labels)),
        scale_({.label = "", .min = 0, .max = static_cast<double>(tokens)}, {}, left_, kRight - 6, false) {}

  double x(int64_t token) const { return scale_.pixel(static_cast<double>(token)); }
  double y(size_t row) const { return kTop - 4 + pitch_ * static_cast<double>(row); }
  double height() const { return pitch_ - 4; }
  double bottom() const { return y(labels_.size()); }

  std::string axes() const {
    std::string out;
    for (size_t row = 0; row < labels_.size(); ++row) {
      // Rows too thin for text are labelled only every other row.
      if (pitch_ > 10 || row % 2 == 0) out += text(left_ - 6, y(row) + height() / 2 + 4, "end", "cl", labels_[row]);
    }
    double free_from = 0;
    for (const ChartTick& tick : scale_.ticks(6)) {
      const double at = scale_.pixel(tick.value), half = text_width(tick.text) / 2;
      if (at - half < free_from || at + half > kWidth) continue;
      out += line(at, bottom(), at, bottom() + 4, "cx") + text(at, bottom() + 16, "middle", "ca", tick.text);
      free_from = at + half + 6;
    }
    return out + line(left_, bottom(), kRight - 6, bottom(), "cx") +
           text((left_ + kRight) / 2, bottom() + 31, "middle", "ca", "token");
  }

 private:
  static double left_of(const std::vector<std::string>& labels) {
    double widest = 0;
    for (const std::string& label : labels) widest = std::max(widest, text_width(label));
    return 12 + widest;
  }

  std::vector<std::string> labels_;
  double pitch_, left_;
  ChartScale scale_;
};

void require_drawable(const PlanDims& dims) {
  if (const std::string problem = dims_problem(dims); !problem.empty()) throw UserError(problem);
  if (dims.layout().segments() > kMostSegments) {
    throw UserError(str(dims.layout().segments(), " segments are too many to draw (limit ", kMostSegments, ")"));
  }
}

// "P 64: layers 1,9,17..": the layers that share a TransPoint.
std::string layer_label(int64_t transpoint, const std::vector<int>& layers) {
  std::string list;
  for (size_t i = 0; i < layers.size() && i < 3; ++i) list += (i == 0 ? "" : ",") + std::to_string(layers[i]);
  return str("P ", transpoint, ": layer", layers.size() == 1 ? " " : "s ", list, layers.size() > 3 ? ".." : "");
}

}  // namespace

std::string rank_picture(const PlanDims& dims) {
  require_drawable(dims);
  const SequenceLayout layout(dims.layout());
  const int drawn = std::min(dims.sp, kMostRows);
  std::vector<std::string> labels;
  for (int rank = 0; rank < drawn; ++rank) labels.push_back(str("rank ", rank));
  const TokenRows rows(dims.tokens, labels);
  std::string body;
  for (const Segment& segment : layout.segments()) {
    if (segment.rank >= drawn) continue;
    body += box(
        rows.x(segment.begin) + 0.4, rows.x(segment.end) - 0.4, rows.y(static_cast<size_t>(segment.rank)),
        rows.height(), segment.rank,
        str("rank ", segment.rank, ", segment ", segment.index, ": tokens ", segment.begin, " to ", segment.end - 1));
  }
  std::string note = str(layout.segments().size(), " segments, ", layout.spec().segments_per_rank(),
                         " per rank, assigned in zigzag order");
  if (drawn < dims.sp) note += str("; ranks ", drawn, " to ", dims.sp - 1, " are not drawn");
  return begin("Tokens owned by each sequence rank", rows.bottom() + 54, "") + body + rows.axes() +
         text(8, rows.bottom() + 48, "start", "cn", note) + "</svg>\n";
}

std::string layer_picture(const PlanDims& dims) {
  require_drawable(dims);
  const SequenceLayout layout(dims.layout());
  // In the order of the layers.
  std::vector<std::pair<int64_t, std::vector<int>>> groups;
  for (size_t layer = 0; layer < dims.transpoints.size(); ++layer) {
    const int64_t transpoint = dims.transpoints[layer];
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == transpoint; });
    if (group == groups.end()) group = groups.insert(groups.end(), {transpoint, {}});
    group->second.push_back(static_cast<int>(layer));
  }
  const size_t drawn = std::min<size_t>(groups.size(), kMostRows);
  std::vector<std::string> labels;
  for (size_t i = 0; i < drawn; ++i) labels.push_back(layer_label(groups[i].first, groups[i].second));
  const TokenRows rows(dims.tokens, labels);
  std::string body;
  for (size_t i = 0; i < drawn; ++i) {
    const int64_t P = groups[i].first, T = dims.tokens;
    if (P > 0) body += box(rows.x(0), rows.x(P), rows.y(i), rows.height(), 0, str("attention: tokens 0 to ", P - 1));
    if (P < T) body += box(rows.x(P), rows.x(T), rows.y(i), rows.height(), 4, str("SSM: tokens ", P, " to ", T - 1));
    body += "\n";
  }
  // Segment boundaries.
  for (const Segment& segment : layout.segments()) {
    if (segment.begin == 0 || layout.segments().size() > 256) continue;
    body += line(rows.x(segment.begin), rows.y(0) - 2, rows.x(segment.begin), rows.bottom(), "cx cd");
  }
  const Alignment alignment = layout.alignment();
  std::string note = alignment.splits.empty()
                         ? "in every layer each segment is entirely attention or entirely SSM"
                         : str(alignment.splits.size(), " TransPoints fall inside a segment (two kernel ranges each)");
  if (drawn < groups.size()) note += str("; ", groups.size() - drawn, " more TransPoints are not drawn");
  const Legend keys = legend({{"attention", 0}, {"SSM (from the TransPoint P)", 4}}, rows.bottom() + 36);
  const double height = rows.bottom() + 36 + keys.height + 17;
  return begin("Attention and SSM tokens of each layer", height, "") + body + rows.axes() + keys.svg +
         text(8, height - 5, "start", "cn", note) + "</svg>\n";
}

}  // namespace tmamba
