// The cost model beside a study's measurements: fitted to them, tried on the largest runs after a fit without them, and
// carried on to numbers of ranks that nobody measured. Model figures stay apart from measured ones everywhere.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <vector>

#include "launch/study/study_results.h"

namespace tmamba {

struct StudyModel {
  CostFit fit = {};
  int slots = 1;  // processors of a node for ranks
};

// The model fitted to all measured points; nothing where there are none.
std::optional<StudyModel> fit_study(const Study& study, const std::vector<MeasuredPoint>& points);

// What the model fitted to the points of fewer ranks says of those with most, beside what was measured:
// {ranks, points: [{id, measured_step_ms, model_step_ms, measured_efficiency, model_efficiency}]}; null where there are
// no two numbers of ranks, or only one below.
nlohmann::json holdout(const Study& study, const std::vector<MeasuredPoint>& points);

// The fit for people and programs: {slots, contention, step_error, numbers: [{name, prior, value, informed}],
// machine: the rates with full nodes}.
nlohmann::json fit_json(const StudyModel& model, int ranks_per_node);

// Predictions of the fitted model at extrapolate.ranks: {ranks_per_node, assumed: [text],
// points: [{series, ranks, seq_len, tp, sp, dp, fold, step_ms, tokens_per_s, efficiency, exposed_ms, mfu,
// memory_bytes}], skipped: [{series, ranks, seq_len, why}]}. Efficiency is over the model's own base.
nlohmann::json extrapolation(const Study& study, const std::vector<MeasuredPoint>& points, const StudyModel& model,
                             double peak_flops);

}  // namespace tmamba
