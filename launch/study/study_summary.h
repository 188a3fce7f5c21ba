// The results of a study as one JSON object, as CSV, and as a text table.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "launch/study/study_results.h"

namespace tmamba {

// A repeat that gave no result.
struct FailedRepeat {
  std::string id;
  int64_t repeat = 0;
  std::string why;
};

// The content of study.json: method, base, measured points (median and interval, the planner's prediction and the
// fitted model), failed repeats and skipped layouts. Everything else of the model is under "model".
nlohmann::json study_summary(const Study& study, const StudyGrid& grid, const std::vector<FailedRepeat>& failed);

// The measured points, one line each. Of the model it holds only the prediction for the same point (fitted_model_*).
std::string study_csv(const nlohmann::json& summary);
// The extrapolated points, one line each, marked as model output in the column `source`.
std::string extrapolation_csv(const nlohmann::json& summary);
// The lowest confidence among the points' intervals of `quantity` ("step_ms", "efficiency"), rounded down: "75 %".
// Fewer than six repeats give less than 95 %.
std::string least_confidence(const nlohmann::json& summary, const char* quantity);
// Formats the summary as text; every line ends with a newline.
std::string study_text(const nlohmann::json& summary);

// Writes study.json, study.csv and study-model.csv to study.dir, each atomically.
void write_summary(const Study& study, const nlohmann::json& summary);

}  // namespace tmamba
