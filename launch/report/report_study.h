// The report of scaling studies: one page of what study.json holds of each, measured and modelled apart.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tmamba {

// Whether the folder is of a study: it holds study.json, or the files of its starts.
bool is_study(const std::string& dir);

// study.json of a folder. Throws UserError where it is missing, damaged or of another version.
nlohmann::json read_study_summary(const std::string& dir);

// A page about the studies, at least one.
std::string study_page(const std::vector<nlohmann::json>& summaries);

}  // namespace tmamba
