// The results of a study as one JSON object, as CSV, and as a table for people.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "launch/study/study_results.h"

namespace tmamba {

// A start that gave no result.
struct FailedStart {
  std::string id;
  int64_t start = 0;
  std::string why;
};

// Everything that study.json holds: method, base, measured points with median and interval beside the planner's
// prediction and the fitted model, failures, what was skipped; the model apart under "model".
nlohmann::json study_summary(const Study& study, const StudyGrid& grid, const std::vector<FailedStart>& failed);

// The measured points, a line each; nothing of the model but its figure for the same point, in columns named so.
std::string study_csv(const nlohmann::json& summary);
// The extrapolation, a line each. Every line says that it is a model.
std::string extrapolation_csv(const nlohmann::json& summary);
// The least confidence of the points' intervals of `quantity` ("step_ms", "efficiency"), for people: "75 %", rounded
// down. Few starts give less than 95 %.
std::string least_confidence(const nlohmann::json& summary, const char* quantity);
// Table for people, every line ended.
std::string study_text(const nlohmann::json& summary);

// study.json, study.csv and study-model.csv in study.dir, each replaced in one step.
void write_summary(const Study& study, const nlohmann::json& summary);

}  // namespace tmamba
