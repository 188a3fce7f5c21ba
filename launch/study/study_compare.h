// Compares two runs of one study, point by point.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "launch/study/study_results.h"

namespace tmamba {

// {other, points: [{id, step_ms, low, high, other_step_ms, ratio, ratio_low, ratio_high, inside, same}]}: `inside`: the
// other run's median lies in this run's interval; `same`: the 95 % interval of the ratio of the medians contains 1.
// Throws UserError if the directory holds no results of the study.
nlohmann::json compare_studies(const Study& study, const StudyGrid& grid, const std::string& other_dir);
// Formats the comparison as a table; every line ends with a newline.
std::string compare_text(const nlohmann::json& compared);

}  // namespace tmamba
