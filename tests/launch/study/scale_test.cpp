// transmamba scale as a user runs it: measures once, resumes after stops and failures, submits to SLURM.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>

#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class Scale : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder(std::string("scale-") + testing::UnitTest::GetInstance()->current_test_info()->name());
    std::ofstream("model.toml")
        << "[model]\nvocab = 256\ndim = 32\nheads = 4\nlayers = 2\nffn = 48\nchunk = 16\nschedule = [0, \"1/1\"]\n"
           "[data]\nseq_len = 64\n";
  }
  void TearDown() override {
    const fs::path folder = fs::current_path();
    fs::current_path("/");
    fs::remove_all(folder);
  }

  static void write_study(const std::string& ranks, const std::string& launcher = "mpirun") {
    std::ofstream("study.toml")
        << "[study]\nconfig = \"model.toml\"\nbatch = 4\nsteps = 1\nrepeats = 2\ndir = \"out\"\nranks = " << ranks
        << "\n[launch]\nmpirun = [\"" << launcher << "\", \"--oversubscribe\"]\n";
  }
  static void write_program(const std::string& name, const std::string& body) {
    std::ofstream(name) << "#!/bin/bash\n" << body;
    fs::permissions(name, fs::perms::owner_all);
  }
  static std::map<std::string, std::string> starts() {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator("out/points")) {
      if (!entry.path().filename().string().starts_with("start-")) continue;
      std::ifstream in(entry.path());
      std::ostringstream text;
      text << in.rdbuf();
      files[entry.path().string()] = text.str();
    }
    return files;
  }
  static json read_json(const fs::path& file) {
    std::ifstream in(file);
    return json::parse(in);
  }
};

TEST_F(Scale, ResumesAndMeasuresNothingTwice) {
  write_study("[1, 2]");
  const Outcome first = transmamba("scale study.toml --repeats 1");
  ASSERT_EQ(first.code, 0) << first.output;
  const auto once = starts();
  ASSERT_EQ(once.size(), 2u);
  const Outcome second = transmamba("scale study.toml");
  ASSERT_EQ(second.code, 0) << second.output;
  EXPECT_NE(second.output.find("[2/2]"), std::string::npos) << second.output;
  EXPECT_NE(second.output.find("2 of 2 points measured"), std::string::npos) << second.output;
  const auto both = starts();
  ASSERT_EQ(both.size(), 4u);
  for (const auto& [file, text] : once) EXPECT_EQ(both.at(file), text) << file;
  const json summary = read_json("out/study.json");
  for (const json& p : summary["points"]) {
    EXPECT_EQ(p["starts"], 2);
    EXPECT_GT(p["step_ms"]["median"].get<double>(), 0);
    EXPECT_GT(p["breakdown"]["checkpoint_ms"]["median"].get<double>(), 0);
    EXPECT_GT(p["memory_bytes"].get<double>(), 1e6);
  }
  // A third run measures nothing, and the report can be written.
  const Outcome third = transmamba("scale study.toml --json");
  EXPECT_EQ(json::parse(third.output)["points"].size(), 2u) << third.output;
  const Outcome report = transmamba("report out");
  EXPECT_EQ(report.code, 0) << report.output;
  EXPECT_GT(fs::file_size("out/report.html"), 10000u);
}

TEST_F(Scale, AFailedRepeatIsReportedAndRetried) {
  // Jobs of two ranks fail until the file `healed` exists; those of one rank print something that is not a result.
  write_program("launcher",
                "if [ ! -e healed ]; then case \"$*\" in *' -n 2 '*) echo 'no route to host' >&2; exit 3;;\n"
                "*) echo '{\"half\": 1'; exit 0;; esac; fi\nexec mpirun \"$@\"\n");
  write_study("[1, 2]", "./launcher");
  const Outcome failed = transmamba("scale study.toml --repeats 1");
  EXPECT_EQ(failed.code, 1) << failed.output;
  for (const char* part : {"exit code 3", "no route to host", "printed no result", "[4/4]", "0 of 2 points measured"}) {
    EXPECT_NE(failed.output.find(part), std::string::npos) << failed.output;
  }
  EXPECT_EQ(read_json("out/study.json")["failed"].size(), 2u);  // one per point
  EXPECT_TRUE(starts().empty() || starts().begin()->first.ends_with(".err") ||
              starts().begin()->first.ends_with(".out"));
  std::ofstream("healed") << "";
  const Outcome healed = transmamba("scale study.toml --repeats 1");
  EXPECT_EQ(healed.code, 0) << healed.output;
  EXPECT_EQ(starts().size(), 2u);
}

// A refused point is not tried again; the program's error is printed, and its files are removed.
TEST_F(Scale, ARefusedPointIsNotTriedAgain) {
  write_program(
      "launcher",
      "case \"$*\" in *' -n 2 '*) echo x >> tries; mkdir -p out/points/T64-n0002-tp1-sp1-dp2-fold1-auto/bench-io\n"
      "printf 'error: node: 2 ranks, but 1 GPU for them\\n-----\\nmpirun detected that\\n' >&2; exit 2;; esac\n"
      "exec mpirun \"$@\"\n");
  write_study("[1, 2]", "./launcher");
  const Outcome refused = transmamba("scale study.toml");
  EXPECT_EQ(refused.code, 1) << refused.output;
  EXPECT_NE(refused.output.find("exit code 2: error: node: 2 ranks, but 1 GPU for them ("), std::string::npos)
      << refused.output;
  EXPECT_NE(refused.output.find("1 of 2 points measured"), std::string::npos) << refused.output;
  EXPECT_EQ(fs::file_size("tries"), 2u);  // one line
  for (const auto& entry : fs::recursive_directory_iterator("out")) EXPECT_NE(entry.path().filename(), "bench-io");
}

TEST_F(Scale, StopsOnASignalAndResumes) {
  write_program("launcher", "if [ ! -e go ]; then touch began; exec sleep 600; fi\nexec mpirun \"$@\"\n");
  write_study("[1]", "./launcher");
  const Outcome stopped = beside("scale study.toml", 0, "until_ '[ -e began ]'; kill -TERM $job");
  EXPECT_EQ(stopped.code, 85) << stopped.output;
  EXPECT_NE(stopped.output.find("run the same command again to resume"), std::string::npos) << stopped.output;
  EXPECT_TRUE(fs::exists("out/study.json"));
  std::ofstream("go") << "";
  EXPECT_EQ(transmamba("scale study.toml --repeats 1").code, 0);
}

TEST_F(Scale, SubmitsJobsToSlurm) {
  write_program(
      "sbatch",
      "echo \"$@\" >> asked; if [ -e full ]; then echo 'sbatch: error: invalid partition' >&2; exit 1; fi; echo 77\n");
  write_program("sinfo", "echo gpu 4\n");
  write_program("squeue",
                "[ -e queued ] || exit 0; for a; do [[ $a != --name=* ]] || names=${a#*=}; done\n"
                "for name in ${names//,/ }; do echo 77 $name; done\n");
  setenv("PATH", (fs::current_path().string() + ":" + std::getenv("PATH")).c_str(), 1);
  write_study("[1, 2]");
  const std::string slurm = "scale study.toml --launcher slurm ";
  const Outcome dry = transmamba(slurm + "--dry-run");
  EXPECT_EQ(dry.code, 0) << dry.output;
  EXPECT_FALSE(fs::exists("asked"));
  EXPECT_TRUE(fs::exists("out/jobs/n1.sbatch") && fs::exists("out/jobs/n2.sbatch"));
  std::ofstream("full") << "";
  const Outcome refused = transmamba(slurm);
  EXPECT_EQ(refused.code, 2) << refused.output;
  EXPECT_NE(refused.output.find("invalid partition"), std::string::npos) << refused.output;
  fs::remove("full");
  const Outcome submitted = transmamba(slurm);
  EXPECT_EQ(submitted.code, 0) << submitted.output;
  EXPECT_NE(submitted.output.find("job 77"), std::string::npos) << submitted.output;
  std::ofstream("queued") << "";
  const Outcome again = transmamba(slurm);
  EXPECT_NE(again.output.find("submitted before"), std::string::npos) << again.output;
  // Runs the job script, with an srun that calls mpirun.
  write_program("srun",
                "args=(); for a in \"$@\"; do [[ $a == --mpi=* || $a == --kill* ]] || args+=(\"$a\"); done; exec "
                "mpirun --oversubscribe \"${args[@]}\"\n");
  const Outcome job =
      shell("SLURM_JOB_ID=77 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here SLURM_NTASKS=2 bash out/jobs/n2.sbatch");
  EXPECT_EQ(job.code, 0) << job.output;
  EXPECT_EQ(starts().size(), 2u);
}

TEST_F(Scale, RefusesInvalidArguments) {
  const auto refused = [](const std::string& arguments, const std::vector<std::string>& parts) {
    const Outcome outcome = transmamba(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments << "\n" << outcome.output;
    for (const std::string& part : parts) {
      EXPECT_NE(outcome.output.find(part), std::string::npos) << arguments << " does not say: " << part << "\n"
                                                              << outcome.output;
    }
  };
  write_study("[1]");
  refused("scale", {"a study file is missing"});
  refused("scale nothing.toml", {"nothing.toml", "cannot read"});
  refused("scale study.toml --launcher pbs", {"pbs", "mpirun, srun, slurm"});
  refused("scale study.toml --dry-run", {"--dry-run is for --launcher slurm"});
  refused("scale study.toml --repeats 0", {"--repeats"});
  refused("scale study.toml --compare elsewhere --summary", {"--compare elsewhere: cannot read it", "elsewhere"});
  refused("report model.toml", {"model.toml"});
  write_study("[3]");
  refused("scale study.toml", {"no layout of this study can run", "3 data-parallel ranks"});
  write_study("[1]", "no-such-launcher");
  refused("scale study.toml", {"cannot start no-such-launcher"});
  write_study("[1]");
  std::ofstream("out/lock") << "";
  const int lock = ::open("out/lock", O_RDWR);
  ASSERT_EQ(::flock(lock, LOCK_EX), 0);
  refused("scale study.toml", {"another `transmamba scale`", "out/lock"});
  ::close(lock);
}

}  // namespace
}  // namespace tmamba
