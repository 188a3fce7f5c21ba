// A scaling study: which layouts, numbers of ranks and sequence lengths are measured, how often and how. Read from a
// TOML file as strictly as a run's configuration.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "launch/plan/run_plan.h"
#include "launch/slurm/site.h"

namespace tmamba {

struct Study {
  std::string file;  // where it was read
  std::string text;  // of that file

  // [study]
  std::string name, mode = "strong", config, dir;
  std::vector<std::string> set;
  std::vector<int64_t> ranks, seq_len;
  std::vector<std::string> layouts{"dp"};
  int64_t batch = 8, micro_batch = 0;
  int64_t repeats = 10, steps = 3, threads = 1, seed = 1;
  bool io = true;
  int64_t checkpoint_every = 100;
  double peak_tflops = 0;

  // [launch]
  std::string launcher = "mpirun";
  std::vector<std::string> mpirun{"mpirun", "--oversubscribe"};
  int64_t ranks_per_node = 0;
  double timeout = 1800;

  // [slurm]
  std::string site_file, time;

  // [extrapolate]
  std::vector<int64_t> to_ranks;
  int64_t to_ranks_per_node = 0;
  double between_gb_per_s = 0, between_latency_us = 0;

  Site site = {};  // see use_site()
  // What starts the ranks in the end, from here or in a job: mpirun or srun.
  const std::string& starter() const { return launcher == "slurm" ? site.launcher : launcher; }
};

// Throws UserError naming file, line, column, key and, for an unknown key, the nearest valid one.
Study load_study(const std::filesystem::path& file);
// Reads the site file that the study runs on: `named`, else slurm.site, else the one of TRANSMAMBA_SITE; mpirun from
// here needs none and takes one by its name alone. It then says how many ranks a node has, unless the study does.
void use_site(Study& study, const std::string& named);
// A line for each key: name, default, what it means.
std::string explain_study();

// One thing to measure.
struct StudyPoint {
  std::string id;                   // names its folder, "T1024-n0004-tp1-sp2-dp2-fold1-auto"
  std::vector<std::string> series;  // layouts of the study that are this one at this number of ranks
  int64_t ranks = 1, seq_len = 0, global_batch = 0;
  std::string transport = "auto";
  RunConfig config = {};
  RunPlan plan = {};
};

// A layout that cannot be measured at a number of ranks, and why.
struct SkippedPoint {
  std::string series;
  int64_t ranks = 0, seq_len = 0;
  std::string why;
};

struct StudyGrid {
  std::vector<StudyPoint> points;  // by sequence length, then ranks
  std::vector<SkippedPoint> skipped;
};

// The configuration that the study's points share. Throws UserError.
RunConfig study_config(const Study& study);

// What one layout of the study is on `ranks` ranks with sequences of `seq_len` tokens of the study's list; "grid" is
// several. `machine` predicts where the layout leaves a choice. Throws UserError saying why where there is none.
std::vector<StudyPoint> points_of(const Study& study, const RunConfig& base, const std::string& layout, int64_t ranks,
                                  int64_t seq_len, const MachineModel& machine);

// Everything to be measured. Throws UserError with all reasons where nothing can be.
StudyGrid study_grid(const Study& study);

}  // namespace tmamba
