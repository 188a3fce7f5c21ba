// What a study has measured: one file for each start of each point, and what they say together.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dist/planner/cost_fit.h"
#include "launch/cli/statistics.h"
#include "launch/study/study.h"

namespace tmamba {

// study.dir/points/ID
std::filesystem::path point_folder(const Study& study, const StudyPoint& point);
// study.dir/points/ID/start-03.json
std::filesystem::path start_file(const Study& study, const StudyPoint& point, int64_t start);
// What makes two measurements the same experiment: the point's configuration, steps, threads and what else the study
// says of them. 16 hexadecimal digits.
std::string fingerprint(const Study& study, const StudyPoint& point);

// The starts of a point that are done, by number. Throws UserError naming the file where one is damaged or of another
// experiment.
std::map<int64_t, nlohmann::json> read_starts(const Study& study, const StudyPoint& point);

// A number measured once per start.
struct Quantity {
  std::vector<double> values;
  double median() const { return median_of(values); }
};

struct MeasuredPoint {
  const StudyPoint* point = nullptr;
  Quantity step_ms, work_ms, exposed_ms, data_ms, checkpoint_stall_ms, checkpoint_ms;  // empty where not measured
  double memory_bytes = 0;                                                             // the most of all starts
  int64_t checkpoint_bytes = 0;
  int hosts = 1, processors = 1, threads = 1;
  double gemm_flops_per_rank = 0;  // 0 where no start measured it
  double load = 0;                 // of the machine before the starts, their median
  int ranks_per_node() const;
  MeasuredStep step() const;
};

// Points with at least one start.
std::vector<MeasuredPoint> measured_points(const Study& study, const StudyGrid& grid);

// Model FLOPs of a step (three times those of the forward pass) of all ranks together.
double step_flops(const StudyPoint& point);

// The point that others of its sequence length (of the study's list) are compared with: of those with the fewest ranks
// the fastest per model FLOP.
const MeasuredPoint& base_of(const std::vector<MeasuredPoint>& points, const Study& study, const MeasuredPoint& point);

}  // namespace tmamba
