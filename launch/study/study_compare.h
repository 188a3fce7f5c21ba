// Two runs of one study, point by point.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "launch/study/study_results.h"

namespace tmamba {

// {other, points: [{id, step_ms, low, high, other_step_ms, ratio, ratio_low, ratio_high, inside, same}]}: `inside`, the
// other's median lies in this one's interval; `same`, the 95 % interval of the ratio of the two medians holds 1. Throws
// UserError where the folder has no results of the study.
nlohmann::json compare_studies(const Study& study, const StudyGrid& grid, const std::string& other_dir);
// They as a table, every line ended.
std::string compare_text(const nlohmann::json& compared);

}  // namespace tmamba
