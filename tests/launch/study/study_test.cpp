// Scaling studies without running anything: study files, points, intervals, and the aggregation of results.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "kernels/base/rng.h"
#include "launch/report/report_study.h"
#include "launch/study/study_compare.h"
#include "launch/study/study_run.h"
#include "tests/source_dir.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// --- statistics

TEST(MedianInterval, IsOfOrderStatistics) {
  std::vector<double> values{7, 3, 9, 1, 10, 2, 8, 4, 6, 5};
  EXPECT_DOUBLE_EQ(median_of(values), 5.5);
  const Interval ten = median_interval(values);
  EXPECT_EQ(ten.low, 2);
  EXPECT_EQ(ten.high, 9);
  EXPECT_NEAR(ten.confidence, 1 - 2 * 11.0 / 1024, 1e-12);  // P(Binomial(10, 1/2) < 2) = 11 / 1024
  values.resize(5);                                         // too few for 95 %
  const Interval five = median_interval(values);
  EXPECT_EQ(five.low, 1);
  EXPECT_EQ(five.high, 10);
  EXPECT_NEAR(five.confidence, 1 - 2.0 / 32, 1e-12);
  const std::vector<double> one{3};
  EXPECT_EQ(median_interval(one).confidence, 0);
  EXPECT_THROW(median_of({}), Error);
}

TEST(MedianInterval, HoldsTheMedianAsOftenAsItSays) {
  constexpr uint64_t kSeed = 20;
  const Philox random(kSeed, 1);
  int held = 0, trials = 4000;
  for (int t = 0; t < trials; ++t) {
    std::vector<double> values;
    for (int i = 0; i < 10; ++i) {  // skewed: most times are short, some long
      values.push_back(std::exp(random.normal(static_cast<uint64_t>(10 * t + i))));
    }
    const Interval interval = median_interval(values);
    held += interval.low <= 1 && 1 <= interval.high;
  }
  EXPECT_NEAR(held / static_cast<double>(trials), 0.9785, 0.01) << "seed " << kSeed;
}

TEST(RatioInterval, HoldsTheRatioAndIsTheSameEveryTime) {
  const Philox random(21, 1);
  int held = 0, trials = 60;
  for (int t = 0; t < trials; ++t) {
    std::vector<double> a, b;
    for (int i = 0; i < 20; ++i) {
      a.push_back(3 + 0.1 * random.normal(static_cast<uint64_t>(40 * t + i)));
      b.push_back(2 + 0.1 * random.normal(static_cast<uint64_t>(40 * t + 20 + i)));
    }
    const Interval interval = ratio_interval(a, b, 1), again = ratio_interval(a, b, 1);
    EXPECT_EQ(interval.low, again.low);
    EXPECT_EQ(interval.high, again.high);
    held += interval.low <= 1.5 && 1.5 <= interval.high;
  }
  EXPECT_GE(held, 0.9 * trials);
}

// --- study files

class StudyFiles : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              ("tmamba-study-" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()) + "-" +
               std::to_string(getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::ofstream(folder_ / "model.toml")
        << "[model]\nvocab = 256\ndim = 32\nheads = 4\nlayers = 2\nffn = 48\nchunk = 16\nschedule = [0, \"1/1\"]\n"
           "[data]\nseq_len = 64\n";
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string write(const std::string& study) const {
    std::ofstream(folder_ / "study.toml") << study;
    return (folder_ / "study.toml").string();
  }
  // [study] with the required keys.
  Study study(const std::string& more = "", const std::string& sections = "") const {
    return load_study(write("[study]\nconfig = \"model.toml\"\nranks = [1, 2, 4]\ndir = \"" +
                            (folder_ / "results").string() + "\"\n" + more + "\n" + sections));
  }
  void refused(const std::string& text, const std::vector<std::string>& parts) const {
    try {
      const Study read = load_study(write(text));
      study_grid(read);
      FAIL() << "accepted: " << text;
    } catch (const UserError& error) {
      for (const std::string& part : parts) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what() << " does not say " << part;
      }
    }
  }

  fs::path folder_;
};

TEST_F(StudyFiles, MistakesAreNamedWithTheirPlace) {
  refused("[study]\nconfig = \"model.toml\"\n  rank = [1]\n",
          {"study.toml:3:3", "unknown key study.rank", "study.ranks"});
  refused("[studdy]\nname = \"x\"\n", {"study.toml:2:1", "studdy.name", "study.name"});
  refused("ranks = [1]\n", {"study.toml:1:1", "unknown key ranks", "study.ranks"});
  refused("[study]\nranks = 4\n", {"study.toml:2:1", "study.ranks", "must be a list", "[1, 2, 4]"});
  refused("[study]\nranks = [0]\n", {"study.ranks", "out of range"});
  refused("[study]\nmode = \"wide\"\n", {"study.mode", "strong", "weak"});
  refused("[study]\nrepeats = = 2\n", {"study.toml:2:1"});
  refused("[study]\nseed = 1\xC3\x9F\n", {"study.toml:2:9", "non-ASCII character outside of quotes"});
  refused("[study]\nranks = [1]\n", {"study.config must be given"});
  refused("[study]\nconfig = \"model.toml\"\n", {"study.ranks must be given"});
  refused("[study]\nconfig = \"none.toml\"\nranks = [1]\n", {"none.toml", "cannot read"});
  refused("[study]\nconfig = \"model.toml\"\nranks = [1]\nset = [\"model.dimm=3\"]\n", {"model.dimm", "model.dim"});
  refused("[study]\nconfig = \"model.toml\"\nranks = [1]\nlayouts = [\"ddp\"]\n",
          {"study.layouts", "ddp", "dp, sp, tp"});
  refused("[study]\nconfig = \"model.toml\"\nranks = [1]\nlayouts = [\"tp=rest, sp=rest\"]\n", {"only one axis"});
  refused("[study]\nconfig = \"model.toml\"\nranks = [1]\nlayouts = [\"transport=pigeon\"]\n", {"pigeon"});
  EXPECT_THROW(load_study(folder_ / "nothing.toml"), UserError);
}

TEST_F(StudyFiles, AStudyWithNoValidLayoutReportsWhy) {
  refused("[study]\nconfig = \"model.toml\"\nranks = [3, 64]\nlayouts = [\"dp\", \"tp\"]\nbatch = 8\n",
          {"no layout of this study can run", "dp on 3 ranks", "train.global_batch = 8 is not divisible by the 3",
           "tp on 64 ranks"});
}

TEST_F(StudyFiles, LayoutsAreChosenForEveryNumberOfRanks) {
  const StudyGrid grid = study_grid(study("layouts = [\"dp\", \"sp\", \"tp=2, sp=rest\", \"grid\"]\nbatch = 4"));
  const auto point = [&](const std::string& id) -> const StudyPoint& {
    const auto found =
        std::find_if(grid.points.begin(), grid.points.end(), [&](const StudyPoint& p) { return p.id == id; });
    if (found == grid.points.end()) throw Error("no point " + id);
    return *found;
  };
  EXPECT_EQ(point("T64-n0001-tp1-sp1-dp1-fold1-auto").series, (std::vector<std::string>{"dp", "sp", "grid"}));
  const StudyPoint& mixed = point("T64-n0004-tp2-sp2-dp1-fold1-auto");
  EXPECT_EQ(mixed.series, (std::vector<std::string>{"tp=2, sp=rest", "grid"}));
  EXPECT_EQ(mixed.plan.dims.batch, 4);
  EXPECT_EQ(point("T64-n0004-tp1-sp1-dp4-fold1-auto").plan.dims.batch, 1);
  EXPECT_EQ(grid.points.size(), 1u + 3u + 6u);
  ASSERT_EQ(grid.skipped.size(), 1u);
  EXPECT_EQ(grid.skipped.front().series, "tp=2, sp=rest");
  EXPECT_EQ(grid.skipped.front().ranks, 1);
}

TEST_F(StudyFiles, WeakStudiesKeepTheWorkOfARank) {
  for (const StudyPoint& p :
       study_grid(study("mode = \"weak\"\nbatch = 3\nmicro_batch = 1\nlayouts = [\"dp\", \"tp\"]")).points) {
    EXPECT_EQ(p.global_batch, 3 * p.ranks);
    EXPECT_EQ(p.seq_len, 64);
    EXPECT_EQ(p.plan.dims.micro_batches() * p.plan.dims.batch * p.plan.dims.dp, p.global_batch);
    EXPECT_EQ(p.plan.dims.batch, 1);
  }
  for (const StudyPoint& p : study_grid(study("mode = \"weak_sequence\"\nbatch = 2\nlayouts = [\"sp\"]")).points) {
    EXPECT_EQ(p.global_batch, 2);
    EXPECT_EQ(p.seq_len, 64 * p.ranks);
  }
}

TEST_F(StudyFiles, TheShippedStudiesCanRun) {
  for (const char* name : {"strong.toml", "weak.toml", "gpu-node.toml"}) {
    const Study shipped = load_study(fs::path(TMAMBA_SOURCE_DIR) / "configs" / "studies" / name);
    const StudyGrid grid = study_grid(shipped);
    EXPECT_TRUE(std::any_of(grid.points.begin(), grid.points.end(), [](const StudyPoint& p) { return p.ranks == 8; }));
    EXPECT_GE(shipped.repeats, 10);
  }
}

// --- results

// Repeats as `bench step` would measure them: step times near `ms`, slightly different in each repeat.
void write_repeat(const Study& study, const StudyPoint& point, int64_t repeat, double ms) {
  const double step = ms * (1 + 0.01 * static_cast<double>(repeat));
  json result = {{"step_ms", step}, {"ranks", point.ranks}, {"hosts", 1},          {"processors", 4},
                 {"threads", 1},    {"work_ms", step},      {"memory_bytes", 1e6}, {"exposed_ms", 0.0}};
  if (point.ranks > 1) result["work_ms"] = 0.9 * step, result["exposed_ms"] = 0.1 * step;
  if (point.ranks == 1) result["gemm_gflops"] = 50.0;
  // On four ranks the job got other devices, which state their peak.
  if (point.ranks == 4) result["peak_tflops"] = 0.1, result["peak_source"] = "their name";
  result["io"] = {{"data_ms", 0.1}, {"checkpoint_stall_ms", 5.0}, {"checkpoint_ms", 50.0}, {"checkpoint_bytes", 1000}};
  fs::create_directories(point_folder(study, point));
  std::ofstream(repeat_file(study, point, repeat))
      << json({{"fingerprint", fingerprint(study, point)}, {"load", 0.5}, {"result", result}});
}

void write_repeats(const Study& study, const StudyGrid& grid, double factor = 1) {
  for (const StudyPoint& point : grid.points) {
    // Perfect scaling, except that each doubling of the ranks costs 10 %.
    const double ms =
        factor * 400.0 / static_cast<double>(point.ranks) * std::pow(1.1, std::log2(static_cast<double>(point.ranks)));
    for (int64_t repeat = 0; repeat < study.repeats; ++repeat) write_repeat(study, point, repeat, ms);
  }
}

TEST_F(StudyFiles, ASummaryHoldsWhatWasMeasured) {
  const Study s = study("layouts = [\"dp\", \"tp\"]\nbatch = 8\nrepeats = 7", "[extrapolate]\nranks = [4096]\n");
  const StudyGrid grid = study_grid(s);
  write_repeats(s, grid);
  const json summary = json::parse(study_summary(s, grid, {}).dump());
  ASSERT_EQ(summary["points"].size(), 5u);
  ASSERT_EQ(summary["bases"].size(), 1u);
  EXPECT_EQ(summary["bases"][0]["ranks"], 1);
  EXPECT_EQ(summary["peak"]["flops_per_rank"], 50e9);
  for (const json& p : summary["points"]) {
    const double ranks = p["ranks"], ms = p["step_ms"]["median"];
    EXPECT_NEAR(ms, 400 / ranks * std::pow(1.1, std::log2(ranks)) * 1.03, 1e-6);
    EXPECT_NEAR(p["efficiency"]["value"].get<double>(), std::pow(1.1, -std::log2(ranks)), 1e-9);
    EXPECT_LE(p["efficiency"]["low"].get<double>(), p["efficiency"]["value"].get<double>() + 1e-12);
    EXPECT_GE(p["efficiency"]["high"].get<double>(), p["efficiency"]["value"].get<double>() - 1e-12);
    EXPECT_NEAR(p["tokens_per_s"]["median"].get<double>(), 8 * 64 / ms * 1e3, 1e-6);
    EXPECT_GE(p["step_ms"]["confidence"].get<double>(), 0.95);
    const double flops = 3 * 8 * model_flops(grid.points.front().plan.costs, grid.points.front().plan.dims);
    EXPECT_NEAR(p["mfu"].get<double>(), flops / (ms / 1e3) / ranks / (ranks == 4 ? 0.1e12 : 50e9), 1e-9);
    EXPECT_NEAR(p["breakdown"]["checkpoint_ms_per_step"].get<double>(), 5.0 / 100, 1e-12);
    EXPECT_GT(p["predicted"]["step_ms"].get<double>(), 0);
    EXPECT_GT(p["predicted"]["memory_bytes"].get<double>(), 0);
    EXPECT_GT(p["fitted"]["step_ms"].get<double>(), 0);
  }
  // 8 sequences are not divisible by 4096 ranks: the extrapolation reports it.
  const json& extrapolated = summary["model"]["extrapolation"];
  EXPECT_TRUE(extrapolated["points"].empty());
  EXPECT_EQ(extrapolated["skipped"].size(), 2u);
  for (const char* series : {"dp", "tp"}) {
    EXPECT_NE(study_text(summary).find(str("skipped in the extrapolation: ", series, " on 4096 ranks")),
              std::string::npos);
  }
  EXPECT_EQ(summary["model"]["holdout"]["ranks"], 4);
  write_summary(s, summary);
  const std::string csv = study_csv(summary), model = extrapolation_csv(summary);
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 6);
  EXPECT_EQ(std::count(model.begin(), model.end(), '\n'), 1);
  EXPECT_NE(study_text(summary).find("5 of 5 points"), std::string::npos);
}

// Three repeats hold the median with 75 % and ten with at least 95 %; the lowest confidence of all points is printed.
TEST_F(StudyFiles, IntervalsAreLabelledWithWhatTheyHoldWith) {
  Study s = study("layouts = [\"dp\"]\nbatch = 8\nrepeats = 3");
  const StudyGrid grid = study_grid(s);
  const auto labels = [&](const char* step, const char* efficiency) {
    const json summary = study_summary(s, grid, {});
    const std::string text = study_text(summary), page = study_page({summary});
    EXPECT_NE(text.find(str(" interval (", step, ") ")), std::string::npos) << text;
    EXPECT_NE(text.find(str(" efficiency % (", efficiency, ") ")), std::string::npos) << text;
    EXPECT_NE(page.find(str("Tokens per second, with intervals (", step, ")")), std::string::npos);
    EXPECT_NE(page.find(str("Efficiency per rank, with intervals (", efficiency, ")")), std::string::npos);
  };
  write_repeats(s, grid);
  labels("75 %", "75 %");
  s.repeats = 6;
  for (int64_t repeat : {3, 4, 5}) write_repeat(s, grid.points.front(), repeat, 400);
  labels("75 %", "75 %");
  write_repeats(s, grid);
  labels("96 %", "95 %");
}

TEST_F(StudyFiles, TheModelExtrapolatesBeyondTheMeasurements) {
  const Study s = study("mode = \"weak\"\nlayouts = [\"dp\", \"auto\"]\nbatch = 32\nrepeats = 6",
                        "[extrapolate]\nranks = [64, 4096]\nranks_per_node = 8\nbetween_gb_per_s = 10.0\n");
  const StudyGrid grid = study_grid(s);
  write_repeats(s, grid, 4);
  const json summary = study_summary(s, grid, {});
  const json& extrapolated = summary["model"]["extrapolation"];
  ASSERT_EQ(extrapolated["points"].size(), 4u) << extrapolated.dump(2);
  EXPECT_EQ(extrapolated["assumed"].size(), 2u);  // links between nodes, and nodes larger than the measured one
  for (const json& p : extrapolated["points"]) {
    EXPECT_GT(p["efficiency"].get<double>(), 0);
    EXPECT_LT(p["efficiency"].get<double>(), 1.1);  // ZeRO takes work from each rank
    EXPECT_EQ(p["tp"].get<int>() * p["sp"].get<int>() * p["dp"].get<int>(), p["ranks"].get<int>());
  }
  for (const json& p : summary["points"]) EXPECT_LE(p["ranks"].get<int>(), 4);
  const std::string csv = extrapolation_csv(summary);
  EXPECT_NE(csv.find("fitted model, not measured"), std::string::npos);
  const std::string page = study_page({summary, summary});
  EXPECT_NE(page.find("Everything in this section is predicted by the cost model"), std::string::npos);
  EXPECT_LT(page.size(), 1000000u);
  EXPECT_EQ(page, study_page({summary, summary}));
}

// Ranks do not share GPUs: the fit to fewer ranks predicts the step time on all GPUs.
TEST_F(StudyFiles, TheModelKnowsTheGpusOfANode) {
  const Study s = study("mode = \"weak\"\nlayouts = [\"dp\"]\nbatch = 32\nrepeats = 6\nset = ['run.device=\"cuda\"']");
  const StudyGrid grid = study_grid(s);
  for (const StudyPoint& point : grid.points) {
    for (int64_t repeat = 0; repeat < s.repeats; ++repeat) write_repeat(s, point, repeat, point.ranks == 1 ? 360 : 400);
  }
  const json held = study_summary(s, grid, {})["model"]["holdout"];
  ASSERT_EQ(held["ranks"], 4);
  for (const json& p : held["points"]) {
    EXPECT_NEAR(p["model_step_ms"].get<double>(), p["measured_step_ms"].get<double>(), 60) << held.dump(2);
  }
}

TEST_F(StudyFiles, DamagedAndForeignResultsAreNamed) {
  const Study s = study("repeats = 2");
  const StudyGrid grid = study_grid(s);
  write_repeats(s, grid);
  const fs::path file = repeat_file(s, grid.points.front(), 1);
  std::ofstream(file) << "{\"fingerprint\": ";
  const auto message = [&](const Study& of) {
    try {
      read_repeats(of, grid.points.front());
      return std::string();
    } catch (const UserError& error) {
      return std::string(error.what());
    }
  };
  EXPECT_NE(message(s).find(file.string() + " is damaged"), std::string::npos) << message(s);
  write_repeats(s, grid);
  EXPECT_EQ(message(s), "");
  Study other = s;
  other.steps = 17;
  EXPECT_NE(message(other).find("another configuration"), std::string::npos) << message(other);
  std::ofstream(fs::path(s.dir) / "study.json") << "{\"kind\": 3";
  EXPECT_THROW(read_study_summary(s.dir), UserError);
}

TEST_F(StudyFiles, TwoRunsAreCompared) {
  const Study s = study("repeats = 10");
  const StudyGrid grid = study_grid(s);
  write_repeats(s, grid);
  Study again = s;
  again.dir = (folder_ / "again").string();
  write_repeats(again, grid, 1.005);  // well within the spread of the repeats
  const json same = compare_studies(s, grid, again.dir);
  ASSERT_EQ(same["points"].size(), grid.points.size());
  for (const json& p : same["points"]) EXPECT_TRUE(p["inside"].get<bool>() && p["same"].get<bool>()) << p;
  write_repeats(again, grid, 1.5);
  for (const json& p : compare_studies(s, grid, again.dir)["points"]) {
    EXPECT_FALSE(p["inside"].get<bool>() || p["same"].get<bool>()) << p;
    EXPECT_NEAR(p["ratio"].get<double>(), 1.5, 1e-9);
  }
  EXPECT_THROW(compare_studies(s, grid, (folder_ / "nowhere").string()), UserError);
}

TEST_F(StudyFiles, JobScriptsAreQuotedAndOfTheSite) {
  std::ofstream(folder_ / "my site.env") << "SITE_PARTITION=gpu\nSITE_GPUS_PER_NODE=2\nSITE_SETUP='module load cuda'\n"
                                            "SITE_TIME=9:00\nSITE_MPI=pmix_v4\nSITE_CONTAINER='box run'\n"
                                            "SITE_SBATCH_OPTIONS=--exclusive\n";
  Study s = study("threads = 4", "[launch]\nlauncher = \"slurm\"\n[slurm]\nsite = \"my site.env\"\ntime = \"5:00\"\n");
  s.dir = (folder_ / "a b;c'd").string();
  use_site(s, "");
  const std::string script = job_script(study_job(s, 4));
  for (const char* part :
       {"#!/bin/bash\n", "#SBATCH --nodes=2\n", "#SBATCH --ntasks-per-node=2\n", "#SBATCH --cpus-per-task=4\n",
        "#SBATCH --partition=gpu\n", "#SBATCH --gpus-per-node=2\n", "#SBATCH --time=5:00\n", "#SBATCH --exclusive\n",
        "#SBATCH --signal=B:USR1@180\n", "SITE_SETUP='module load cuda'\n", "SITE_LAUNCHER='program'\n",
        "'--launcher' 'srun' '--only-ranks' '4'", "a b;c'\\''d'", "my site.env'"}) {
    EXPECT_NE(script.find(part), std::string::npos) << script << "\nlacks " << part;
  }
  // A job of one rank requests one of the node's GPUs.
  EXPECT_NE(job_script(study_job(s, 1)).find("#SBATCH --gpus-per-node=1\n"), std::string::npos);
  const fs::path file = folder_ / "job.sh";
  std::ofstream(file) << script;
  EXPECT_EQ(std::system(("bash -n '" + file.string() + "'").c_str()), 0) << script;
  // The ranks start in the container, by the site's srun options.
  const std::vector<std::string> command = repeat_command(s, study_grid(s).points.back(), s.starter(), {});
  const std::vector<std::string> begin(command.begin(), command.begin() + 10);
  EXPECT_EQ(begin, (std::vector<std::string>{"srun", "--mpi=pmix_v4", "--kill-on-bad-exit=1", "--nodes=2",
                                             "--ntasks-per-node=2", "-n", "4", "box", "run", "transmamba"}));
}

TEST_F(StudyFiles, ASiteIsForJobs) {
  std::ofstream(folder_ / "site.env") << "SITE_RANKS_PER_NODE=3\nSITE_LAUNCHER=mpirun\n";
  const std::string file = (folder_ / "site.env").string();
  Study here = study("", "[slurm]\nsite = \"site.env\"\n"), jobs = here, inside = here;
  use_site(here, "");
  EXPECT_EQ(here.ranks_per_node, 0);  // mpirun from this process ignores the site file
  jobs.launcher = "slurm";
  use_site(jobs, "");
  EXPECT_EQ(jobs.ranks_per_node, 3);
  EXPECT_EQ(jobs.starter(), "mpirun");
  use_site(inside, file);  // as in a job of the study
  const StudyPoint point = study_grid(jobs).points.front();
  EXPECT_EQ(fingerprint(inside, point), fingerprint(jobs, point));
  jobs.site_file = "nowhere.env";
  EXPECT_THROW(use_site(jobs, ""), UserError);
}

}  // namespace
}  // namespace tmamba
