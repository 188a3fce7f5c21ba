// The report of one run, or of several overlaid: one self-contained HTML page.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "dist/planner/plan.h"
#include "launch/report/chart.h"
#include "launch/run/goodput.h"
#include "launch/run/run_record.h"

namespace tmamba {

// Upper limit of a page. Long or many runs are drawn with fewer points and shorter texts until the page fits.
inline constexpr size_t kReportBytes = 1000000;

// A run: its records, and what is computed from them.
struct ReportRun {
  RunRecord record;
  Goodput goodput;
  std::string name;  // unique within a report
};

// The HTML page of at least one run.
std::string report_page(const std::vector<ReportRun>& runs);

// Reads the run directories. Throws UserError if one is not a run directory.
std::vector<ReportRun> read_runs(const std::vector<std::string>& dirs);

// Limits on the parts of a page.
struct ReportDetail {
  int64_t groups = 240;        // ranges of steps per curve
  size_t text_bytes = 200000;  // all samples and configurations together
  size_t events = 200;         // all runs together
};

// A table of the keys whose values differ between the runs; empty for one run.
std::string differences_section(const std::vector<ReportRun>& runs);
// The text of each run's configuration, all together in at most about `bytes`.
std::string config_section(const std::vector<ReportRun>& runs, size_t bytes);

// HTML cards with the curves of the runs.
std::string report_curves(const std::vector<ReportRun>& runs, const ReportDetail& detail);
// Bars of the step time by phase: one per run, or one per range of steps of a single run.
std::string step_time_chart(const std::vector<ReportRun>& runs);
// Bars of the wall time by activity: per run, and per attempt of a single run.
std::string goodput_chart(const std::vector<ReportRun>& runs);

// Two <svg> elements: the tokens of a sequence that each rank owns, and the split of each layer into attention and SSM.
// Throws UserError if such a layout cannot exist.
std::string rank_picture(const PlanDims& dims);
std::string layer_picture(const PlanDims& dims);

}  // namespace tmamba
