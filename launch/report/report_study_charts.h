// Charts of a scaling study's report, drawn from study.json.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace tmamba::study_charts {

// A member of a JSON object; number() returns NaN for null.
double number(const nlohmann::json& object, const char* key);
std::string word(const nlohmann::json& object, const char* key);

// "1 rank", "8 ranks"
std::string ranks_word(int64_t ranks);

// Whether the points differ in sequence length. Always false for weak_sequence studies, where it grows with the ranks.
bool several_lengths(const nlohmann::json& summary);

// One curve: a layout at a sequence length, with its fastest point for each number of ranks.
struct Curve {
  std::string name;
  std::map<int64_t, const nlohmann::json*> points;  // into the summary
};
std::vector<Curve> curves_of(const nlohmann::json& summary);
// Merges curves that consist of the same points, and joins their names by " = ".
std::vector<Curve> distinct(const std::vector<Curve>& curves);

// <svg> elements.
std::string efficiency_chart(const nlohmann::json& summary, const std::vector<Curve>& curves);
std::string rate_chart(const nlohmann::json& summary, const std::vector<Curve>& curves);
std::string breakdown_chart(const std::vector<Curve>& curves);
// Predicted against measured step times; on the diagonal they are equal.
std::string parity_chart(const nlohmann::json& summary);
std::string extrapolation_chart(const nlohmann::json& summary, const std::vector<Curve>& curves);

}  // namespace tmamba::study_charts
