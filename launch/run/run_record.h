// What a run folder tells of its run, read back: by the goodput ledger, the report and other tools. A folder of a run
// that goes on, was killed, or was damaged is read as far as it can be; what cannot be read is named.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dist/planner/plan.h"

namespace tmamba {

inline constexpr double kNotRecorded = std::numeric_limits<double>::quiet_NaN();

// Times are seconds since 1970. What a line does not hold, or holds as null, is not a number.
struct StepRecord {
  int64_t step = 0;
  double time = kNotRecorded;
  double loss = kNotRecorded, bits_per_byte = kNotRecorded, grad_norm = kNotRecorded, lr = kNotRecorded;
  double tokens = kNotRecorded, tokens_per_s = kNotRecorded, gflops = kNotRecorded, memory_bytes = kNotRecorded;
  double step_ms = kNotRecorded, data_ms = kNotRecorded, compute_ms = kNotRecorded, agree_ms = kNotRecorded,
         update_ms = kNotRecorded;
  double save_stall_ms = 0;  // that saves kept training waiting since the line before
  bool skipped = false;
};

// An evaluation, or a sample that was made.
struct PauseRecord {
  int64_t step = 0;
  double time = kNotRecorded;
  double valid_loss = kNotRecorded, valid_bits_per_byte = kNotRecorded;  // of an evaluation
  double seconds = 0;
  double save_stall_ms = 0;
};

struct MetricRecords {
  std::vector<StepRecord> steps;
  std::vector<PauseRecord> pauses;
};

struct EventRecord {
  double time = kNotRecorded;
  std::string kind;
  nlohmann::json details;  // the whole line
  int64_t step() const;    // -1 where the event has none
};

struct SampleRecord {
  int64_t step = 0;
  std::string text;
};

struct RunRecord {
  std::filesystem::path dir;
  std::string name;    // its last parts
  MetricRecords kept;  // metrics.jsonl: each step once, ascending
  MetricRecords lost;  // lost.jsonl: what was done again later
  std::vector<EventRecord> events;
  std::vector<SampleRecord> samples;
  std::string config;                 // config.toml; empty: there is none
  std::optional<PlanDims> plan;       // plan.json
  nlohmann::json summary;             // summary.json; null: the run has not ended
  std::vector<std::string> problems;  // "metrics.jsonl:17: ..."
};

// Throws UserError where the folder is not one of a run: there is neither metrics.jsonl nor events.jsonl in it.
RunRecord read_run(const std::filesystem::path& dir);

// The same without what only a page shows: samples, configuration, plan and summary.
RunRecord read_run_logs(const std::filesystem::path& dir);

}  // namespace tmamba
