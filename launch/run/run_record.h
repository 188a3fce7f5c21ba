// Reads a run directory, for the goodput ledger, the report and other tools. The directory of a run that is in
// progress, was killed, or is damaged is read as far as possible; what cannot be read is listed in `problems`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "dist/planner/plan.h"
#include "launch/run/lease.h"

namespace tmamba {

inline constexpr double kNotRecorded = std::numeric_limits<double>::quiet_NaN();

// Times are seconds since 1970. What is missing or null in a line is NaN.
struct StepRecord {
  int64_t step = 0;
  double time = kNotRecorded;
  double loss = kNotRecorded, bits_per_byte = kNotRecorded, grad_norm = kNotRecorded, lr = kNotRecorded;
  double tokens = kNotRecorded, tokens_per_s = kNotRecorded, gflops = kNotRecorded, mfu = kNotRecorded,
         memory_bytes = kNotRecorded;
  double step_ms = kNotRecorded, data_ms = kNotRecorded, compute_ms = kNotRecorded, agree_ms = kNotRecorded,
         update_ms = kNotRecorded;
  double save_stall_ms = 0;  // time that saves kept training waiting since the previous line
  bool skipped = false;
};

// An evaluation or a sample.
struct PauseRecord {
  int64_t step = 0;
  double time = kNotRecorded;
  double valid_loss = kNotRecorded, valid_bits_per_byte = kNotRecorded;  // of an evaluation
  double valid_tokens = kNotRecorded;                                    // it was over this many
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
  std::string name;    // the last two parts of `dir`
  MetricRecords kept;  // metrics.jsonl: each step once, ascending
  MetricRecords lost;  // lost.jsonl: what was repeated later
  std::vector<EventRecord> events;
  std::vector<SampleRecord> samples;
  std::string config;            // config.toml; empty if missing
  std::optional<PlanDims> plan;  // plan.json
  nlohmann::json summary;        // summary.json; null: the run has not ended
  LeaseState lease = LeaseState::none;
  std::vector<std::string> problems;  // "metrics.jsonl:17: ..."
};

// Throws UserError where `dir` is not a run directory: it has neither metrics.jsonl nor events.jsonl.
RunRecord read_run(const std::filesystem::path& dir);

// The same without samples, configuration, plan and summary.
RunRecord read_run_logs(const std::filesystem::path& dir);

}  // namespace tmamba
