// A scaling study: the layouts, numbers of ranks and sequence lengths to measure, and how. It is read from a TOML file
// as strictly as a run's configuration.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "launch/plan/run_plan.h"
#include "launch/slurm/site.h"

namespace tmamba {

struct Study {
  std::string file;  // path of the study file
  std::string text;  // content of the study file

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
  // The program that starts the ranks, from this process or in a batch job: mpirun or srun.
  const std::string& starter() const { return launcher == "slurm" ? site.launcher : launcher; }
};

// Throws UserError naming file, line, column, key and, for an unknown key, the nearest valid one.
Study load_study(const std::filesystem::path& file);
// Reads the site file of the study: `named`, else slurm.site, else the one that TRANSMAMBA_SITE names. With
// launch.launcher = mpirun only `named` is read. The site file sets ranks_per_node unless the study does.
void use_site(Study& study, const std::string& named);
// One line per key, or JSON, as explain_keys() has it.
std::string explain_study(bool as_json = false);

// One layout at one number of ranks and one sequence length.
struct StudyPoint {
  std::string id;                   // name of its directory, "T1024-n0004-tp1-sp2-dp2-fold1-auto"
  std::vector<std::string> series;  // layouts of the study that give this point
  int64_t ranks = 1, seq_len = 0, global_batch = 0;
  std::string transport = "auto";
  RunConfig config = {};
  RunPlan plan = {};
};

// A layout that cannot be measured at a number of ranks, and the reason.
struct SkippedPoint {
  std::string series;
  int64_t ranks = 0, seq_len = 0;
  std::string why;
};

struct StudyGrid {
  std::vector<StudyPoint> points;  // by sequence length, then ranks
  std::vector<SkippedPoint> skipped;
};

// The configuration that all points of the study start from. Throws UserError.
RunConfig study_config(const Study& study);

// The points of one layout on `ranks` ranks for the entry `seq_len` of the study's list; "grid" gives several. Where
// the layout leaves a choice, the prediction on `machine` decides. Throws UserError with the reason if no point is
// possible.
std::vector<StudyPoint> points_of(const Study& study, const RunConfig& base, const std::string& layout, int64_t ranks,
                                  int64_t seq_len, const MachineModel& machine);

// All points to measure. Throws UserError with all reasons if there is none.
StudyGrid study_grid(const Study& study);

}  // namespace tmamba
