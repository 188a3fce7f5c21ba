// The cost model of a study: it is fitted to the measured points, validated on the points with the most ranks after a
// fit without them, and extrapolated to more ranks. Model figures are kept apart from measured ones everywhere.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <vector>

#include "launch/study/study_results.h"

namespace tmamba {

struct StudyModel {
  CostFit fit = {};
  int slots = 1;  // ranks that a node has processors for
};

// Fits the model to all measured points; nullopt if there are none.
std::optional<StudyModel> fit_study(const Study& study, const std::vector<MeasuredPoint>& points);

// Predictions for the points with the most ranks, by a model fitted to the points with fewer, beside the measurements:
// {ranks, points: [{id, measured_step_ms, model_step_ms, measured_efficiency, model_efficiency}]}; null unless
// at least two smaller numbers of ranks were measured.
nlohmann::json holdout(const Study& study, const std::vector<MeasuredPoint>& points);

// The fit: {slots, contention, step_error, numbers: [{name, prior, value, informed}],
// machine: the rates with all slots of a node in use}.
nlohmann::json fit_json(const StudyModel& model, int ranks_per_node);

// Predictions of the fitted model at extrapolate.ranks: {ranks_per_node, assumed: [text],
// points: [{series, ranks, seq_len, tp, sp, dp, fold, step_ms, tokens_per_s, efficiency, exposed_ms, mfu,
// memory_bytes}], skipped: [{series, ranks, seq_len, why}]}. Efficiency is relative to the model's own base.
nlohmann::json extrapolation(const Study& study, const std::vector<MeasuredPoint>& points, const StudyModel& model,
                             double peak_flops);

}  // namespace tmamba
