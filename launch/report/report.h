// The report of one run or several over each other: one HTML page that needs nothing but itself.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "dist/planner/plan.h"
#include "launch/report/chart.h"
#include "launch/run/goodput.h"
#include "launch/run/run_record.h"

namespace tmamba {

// No page is larger; long runs and many of them are drawn with fewer points and shorter texts until it fits.
inline constexpr size_t kReportBytes = 1000000;

// A run with what is computed from its records.
struct ReportRun {
  RunRecord record;
  Goodput goodput;
  std::string name;  // no two of a report have the same
};

// At least one run.
std::string report_page(const std::vector<ReportRun>& runs);

// Reads the folders. Throws UserError where one is not of a run.
std::vector<ReportRun> read_runs(const std::vector<std::string>& dirs);

// How much of a page its parts may take.
struct ReportDetail {
  int64_t groups = 240;        // ranges of steps of each curve
  size_t text_bytes = 200000;  // of all samples and configurations
  size_t events = 200;         // of all runs
};

// Cards with the curves of the runs; HTML.
std::string report_curves(const std::vector<ReportRun>& runs, const ReportDetail& detail);
// Bars of the parts of a step: of the runs, or of parts of the one run.
std::string step_time_chart(const std::vector<ReportRun>& runs);
// Bars of where the wall time went.
std::string goodput_chart(const std::vector<ReportRun>& runs);

// Which tokens of a sequence each rank owns, and what each layer does with them; two <svg> elements. Throws UserError
// where such a layout cannot exist.
std::string rank_picture(const PlanDims& dims);
std::string layer_picture(const PlanDims& dims);

}  // namespace tmamba
