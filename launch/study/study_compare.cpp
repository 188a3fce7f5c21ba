#include "launch/study/study_compare.h"

#include <algorithm>

#include "launch/cli/format.h"

namespace tmamba {

using nlohmann::json;

json compare_studies(const Study& study, const StudyGrid& grid, const std::string& other_dir) {
  Study other = study;
  other.dir = other_dir;
  const std::vector<MeasuredPoint> points = measured_points(study, grid), others = measured_points(other, grid);
  json rows = json::array();
  for (const MeasuredPoint& a : points) {
    const auto b =
        std::find_if(others.begin(), others.end(), [&](const MeasuredPoint& m) { return m.point == a.point; });
    if (b == others.end()) continue;
    const Interval interval = median_interval(a.step_ms.values);
    const Interval ratio = ratio_interval(b->step_ms.values, a.step_ms.values, static_cast<uint64_t>(study.seed));
    const double median = a.step_ms.median(), other_median = b->step_ms.median();
    rows.push_back({{"id", a.point->id},
                    {"step_ms", median},
                    {"low", interval.low},
                    {"high", interval.high},
                    {"other_step_ms", other_median},
                    {"ratio", other_median / median},
                    {"ratio_low", ratio.low},
                    {"ratio_high", ratio.high},
                    {"inside", interval.low <= other_median && other_median <= interval.high},
                    {"same", ratio.low <= 1 && 1 <= ratio.high}});
  }
  if (rows.empty()) throw UserError(str("--compare ", other_dir, ": the directory holds no results of ", study.file));
  return {{"other", other_dir}, {"points", rows}};
}

std::string compare_text(const json& compared) {
  std::string text = str("\nCompared with ", compared.at("other").get<std::string>(), "\n");
  int inside = 0, same = 0;
  for (const json& p : compared.at("points")) {
    const auto number = [&](const char* name) { return p.at(name).get<double>(); };
    inside += p.at("inside").get<bool>(), same += p.at("same").get<bool>();
    text +=
        str("  ", p.at("id").get<std::string>(), ": ", fixed(number("step_ms"), 1), " ms [", fixed(number("low"), 1),
            ", ", fixed(number("high"), 1), "], other run ", fixed(number("other_step_ms"), 1), " ms; ratio ",
            fixed(number("ratio"), 3), " [", fixed(number("ratio_low"), 3), ", ", fixed(number("ratio_high"), 3), "]",
            p.at("same").get<bool>() ? "" : ": differs", "\n");
  }
  return text + str("  ", inside, " of ", compared.at("points").size(),
                    " medians of the other run lie within the interval; ", same, " intervals of the ratio contain 1\n");
}

}  // namespace tmamba
