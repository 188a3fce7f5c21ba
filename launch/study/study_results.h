// Results of a study: one file per repeat of each point, and their aggregation.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dist/planner/cost_fit.h"
#include "launch/cli/statistics.h"
#include "launch/plan/device_peak.h"
#include "launch/study/study.h"

namespace tmamba {

// study.dir/points/ID
std::filesystem::path point_folder(const Study& study, const StudyPoint& point);
// study.dir/points/ID/start-03.json
std::filesystem::path repeat_file(const Study& study, const StudyPoint& point, int64_t repeat);
// Hash of everything that defines the experiment: the point's configuration, steps, threads, launcher and placement.
// 16 hexadecimal digits.
std::string fingerprint(const Study& study, const StudyPoint& point);

// The completed repeats of a point, by index. Throws UserError naming the file if one is damaged or belongs to another
// experiment.
std::map<int64_t, nlohmann::json> read_repeats(const Study& study, const StudyPoint& point);

// A quantity measured once per repeat.
struct Quantity {
  std::vector<double> values;
  double median() const { return median_of(values); }
};

struct MeasuredPoint {
  const StudyPoint* point = nullptr;
  Quantity step_ms, work_ms, exposed_ms, data_ms, checkpoint_stall_ms, checkpoint_ms;  // empty if not measured
  double memory_bytes = 0;                                                             // maximum over the repeats
  int64_t checkpoint_bytes = 0;
  int hosts = 1, processors = 1, threads = 1;
  double gemm_flops_per_rank = 0;  // 0 if no repeat measured it
  Peak peak = {};                  // of a rank's device; unknown if no repeat recorded it
  double load = 0;                 // load average of the machine before each repeat, median
  int ranks_per_node() const;
  MeasuredStep step() const;
};

// Points with at least one completed repeat.
std::vector<MeasuredPoint> measured_points(const Study& study, const StudyGrid& grid);

// Model FLOPs of a step (three times the forward pass), summed over all ranks.
double step_flops(const StudyPoint& point);

// The base of `point`'s efficiency: among the points of its sequence length (of the study's list) with the fewest
// ranks, the one with the highest model FLOP/s.
const MeasuredPoint& base_of(const std::vector<MeasuredPoint>& points, const Study& study, const MeasuredPoint& point);

}  // namespace tmamba
