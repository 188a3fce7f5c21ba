// The report of scaling studies: one page drawn from their study.json, with measurements and predictions kept apart.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tmamba {

// Whether the directory belongs to a study: it holds study.json or results of repeats.
bool is_study(const std::string& dir);

// Reads DIR/study.json. Throws UserError if it is missing, damaged or of another version.
nlohmann::json read_study_summary(const std::string& dir);

// The HTML page of at least one study.
std::string study_page(const std::vector<nlohmann::json>& summaries);

}  // namespace tmamba
