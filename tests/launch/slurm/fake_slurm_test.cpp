// `transmamba submit` and cluster/job.sh beside commands of SLURM that are scripts of this test: what they are asked,
// and what becomes of their answers. tests/slurm has the real ones.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "launch/slurm/job_script.h"
#include "launch/slurm/slurm_queue.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

class FakeSlurm : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = enter_test_folder("fake");
    folder_ = fs::canonical(folder_);
    fs::create_directory("bin");
    command("sbatch",
            "[ \"$1\" = --parsable ] && { echo 7; exit; }; [ ! -e refuse ] || { echo 'no such account'; exit 1; }");
    command("sinfo", "cat sinfo.txt");
    command("squeue", "cat squeue.txt 2>/dev/null");
    command("scancel", "");
    // The nodes of two partitions, the first of them the default; %P, %l and %N of each.
    std::ofstream("sinfo.txt") << "low* 10:00 n0\nlow* 10:00 n1\nhigh 1-00:00:00 n1\nhigh 1-00:00:00 n0\nhigh "
                                  "1-00:00:00 n2\nlong infinite n2\n";
  }
  void TearDown() override {
    fs::current_path("/");
    fs::remove_all(folder_);
  }

  // A command of SLURM; what it is asked goes to asked().
  void command(const std::string& name, const std::string& body) {
    const fs::path file = fs::path("bin") / name;
    std::ofstream(file) << "#!/bin/bash\necho \"" << name << " $*\" >>'" << (folder_ / "asked.txt").string() << "'\n"
                        << body << "\nexit 0\n";
    fs::permissions(file, fs::perms::owner_all);
  }
  std::string asked() const { return read_file(folder_ / "asked.txt"); }

  Outcome submit(const std::string& options) {
    if (!fs::exists("run.toml")) {
      prepare_bytes(20000);
      write_config("run.toml", "steps = 100\nglobal_batch = 48");
    }
    return shell("PATH='" + (folder_ / "bin").string() + "':$PATH " + command_line("submit run.toml " + options, 0));
  }
  void refused(const std::string& options, const std::string& says) {
    const Outcome outcome = submit(options);
    EXPECT_EQ(outcome.code, 2) << outcome.output;
    EXPECT_NE(outcome.output.find(says), std::string::npos) << outcome.output;
    EXPECT_EQ(asked().find("--parsable"), std::string::npos) << "submitted all the same:\n" << asked();
  }
  void taken(const std::string& options) {
    const Outcome outcome = submit(options);
    EXPECT_EQ(outcome.code, 0) << outcome.output;
    EXPECT_NE(asked().find("sbatch --parsable"), std::string::npos) << asked();
  }

  // cluster/job.sh with these lines before it, its ranks a shell command that stands for the program.
  Outcome job(const std::string& lines, const std::string& ranks) {
    command("srun", "while [ \"${1#-}\" != \"$1\" ]; do shift; done; SLURM_PROCID=0 exec \"$@\"");
    std::ofstream("ranks.sh") << ranks << "\n";
    fs::create_directory("run");
    std::ofstream("job.sh") << "program=(bash ranks.sh)\narguments=()\nrun_dir=run\n" << lines << "\n" << job_body();
    return shell("PATH='" + (folder_ / "bin").string() +
                 "':$PATH SLURM_JOB_ID=12 SLURM_JOB_NAME=exp SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=n0 "
                 "SLURM_NTASKS=1 timeout -k 1 30 bash job.sh");
  }

  fs::path folder_;
};

// Jobs of two run directorys share no name, whatever the user calls them, and however the folder is written.
TEST_F(FakeSlurm, ANameIsThatOfOneRunFolder) {
  const auto name = [&](const std::string& options) {
    const std::string text = submit("--nodes 1 --dry-run " + options).output;
    const size_t begin = text.find("--job-name=") + 11;
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  const std::string first = name("--name exp --set run.dir=a"), second = name("--name exp --set run.dir=b");
  EXPECT_TRUE(first.starts_with("exp-")) << first;
  EXPECT_NE(first, second);
  EXPECT_EQ(first, name("--name exp --set run.dir=b/../a"));
  fs::create_directory("a");
  fs::create_directory_symlink("a", "link");
  EXPECT_EQ(first, name("--name exp --set run.dir=link"));
}

// Jobs of one folder under two names would not wait for each other.
TEST_F(FakeSlurm, OneFolderHasOneName) {
  const std::string other = job_name((folder_ / "run").string(), "other");
  std::ofstream("squeue.txt") << "11 somebody's job\n12_[1-2] " << other << "\n";
  refused("--nodes 1 --name exp",
          "job 12_[1-2] of the run directory " + (folder_ / "run").string() + " is named " + other);
  EXPECT_FALSE(fs::exists("run"));
  taken("--nodes 1 --name other");
}

TEST_F(FakeSlurm, AFinishedJobCancelsThoseOfItsFolderOnly) {
  EXPECT_EQ(job("job_name=exp-a SITE_REQUEUE=never", "exit 0").code, 0);
  EXPECT_NE(asked().find("--name=exp-a --state=PENDING"), std::string::npos) << asked();
}

// The name of a script by hand is that of many runs.
TEST_F(FakeSlurm, AFinishedJobByHandCancelsTheRestOfItsArrayOnly) {
  EXPECT_EQ(job("SITE_REQUEUE=never", "exit 0").code, 0);
  EXPECT_EQ(asked().find("scancel"), std::string::npos) << asked();
  fs::remove_all("run");
  EXPECT_EQ(job("SITE_REQUEUE=never SLURM_ARRAY_JOB_ID=11", "exit 0").code, 0);
  EXPECT_NE(asked().find("scancel --state=PENDING 11\n"), std::string::npos) << asked();
  EXPECT_EQ(asked().find("--name"), std::string::npos) << asked();
}

// Nodes are those of one partition, however many have them too.
TEST_F(FakeSlurm, NodesAreThoseOfThePartition) {
  refused("--nodes 3", "--nodes 3: partition low has 2 nodes");
  std::ofstream("high.env") << "SITE_PARTITION=high\n";
  refused("--nodes 4 --site high.env", "--nodes 4: partition high has 3 nodes");
  std::ofstream("gone.env") << "SITE_PARTITION=high,gone\n";
  refused("--nodes 1 --site gone.env", "unknown partition gone (SITE_PARTITION); valid: high long low");
  std::ofstream("any.env") << "SITE_PARTITION=long,high\n";
  taken("--nodes 2 --site any.env");
}

// SLURM would take a job over its partition's limit and never start it.
TEST_F(FakeSlurm, TimeIsThatOfThePartition) {
  refused("--nodes 1 --time 99:00:00", "time limit 99:00:00: partition low ends jobs after 10:00");
  refused("--nodes 1 --time 10:01", "ends jobs after 10:00");
  refused("--nodes 1 --time UNLIMITED", "ends jobs after 10:00");
  std::ofstream("more.env") << "SITE_TIME=5\nSITE_SBATCH_OPTIONS='--partition=high --time=1-0:01'\n";
  refused("--nodes 1 --site more.env", "time limit 1-0:01: partition high ends jobs after 1-00:00:00");
  std::ofstream("qos.env") << "SITE_QOS=long-jobs\n";
  command("sacctmgr", "echo DenyOnLimit,PartitionTimeLimit");
  taken("--nodes 1 --site qos.env --time 99:00:00");
  taken("--nodes 1 --time 10:00");
}

TEST(SlurmQueue, ReadsTimes) {
  const int64_t none = std::numeric_limits<int64_t>::max();
  const std::vector<std::pair<std::string, int64_t>> times{
      {"30", 30},        {"30:00", 30},        {"30:01", 31},      {"24:00:00", 1440}, {"1-12", 2160},
      {"1-12:30", 2190}, {"2-00:00:01", 2881}, {"infinite", none}, {"0", none},        {"UNLIMITED", none}};
  for (const auto& [text, minutes] : times) EXPECT_EQ(slurm_minutes(text), minutes) << text;
  for (const char* text : {"", "soon", "1:2:3:4", "1-", "-1-2", "1-2-3", "1::2", "99999999999"})
    EXPECT_EQ(slurm_minutes(text), std::nullopt) << text;
}

// A job that has lost a node submits the script of its run again.
TEST_F(FakeSlurm, ARefusedJobLeavesTheScriptOfTheRunningOne) {
  std::ofstream("refuse").close();
  refused("--nodes 1 --set run.dir=new/run", "SLURM would refuse this job (sbatch --test-only): no such account");
  EXPECT_FALSE(fs::exists("new"));
  fs::remove("refuse");
  taken("--nodes 1");
  const std::string script = read_file("run/job.sbatch");
  EXPECT_NE(script.find("#SBATCH --nodes=1\n"), std::string::npos);
  std::ofstream("refuse").close();
  fs::remove("asked.txt");
  refused("--nodes 2", "no such account");
  EXPECT_EQ(read_file("run/job.sbatch"), script);
  EXPECT_EQ(std::distance(fs::directory_iterator("run"), fs::directory_iterator()), 1) << "a draft is left";
}

// In a batch script, without srun or mpirun.
TEST_F(FakeSlurm, OneRankInAJobOfSeveralTasksIsRefused) {
  EXPECT_EQ(submit("--help").code, 0);  // writes run.toml
  const Outcome outcome = shell("SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_LOCALID=0 " +
                                command_line("train run.toml --check", 0));
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_NE(outcome.output.find("warning: SLURM job 7 has 8 tasks, but this program"), std::string::npos)
      << outcome.output;
}

// With proctrack/cgroup only the script is signalled for the requeue, not the commands that it waits for.
TEST_F(FakeSlurm, AJobThatRequeuesItselfEndsAtOnce) {
  command("scontrol", "[ \"$1\" != requeue ] || kill -TERM $PPID");
  const Outcome outcome = job("SITE_REQUEUE=self", "exit 85");
  EXPECT_EQ(outcome.code, 85) << outcome.output;  // 124: it was still there after half a minute
  EXPECT_NE(asked().find("scontrol requeue 12"), std::string::npos) << asked();
}

// No ranks are started while mpirun is starting and cannot be stopped yet.
TEST_F(FakeSlurm, AJobSignalledBeforeItsRanksStartsNone) {
  const Outcome outcome = job("SITE_REQUEUE=auto SITE_SETUP='kill -USR1 $$' ", "touch started");
  EXPECT_EQ(outcome.code, 85) << outcome.output;
  EXPECT_FALSE(fs::exists("started"));
}

// A script by hand has no run directory yet when its configuration is refused.
TEST_F(FakeSlurm, AMistakeIsNoSuccessWithoutARunFolder) { EXPECT_EQ(job("run_dir=nowhere", "exit 2").code, 2); }

// A run exits with 93 if it makes no progress, and an attempt if another one has taken over its run directory.
TEST_F(FakeSlurm, AJobThatLostItsDirectoryCancelsNothing) {
  const std::string lines = "job_name=exp-a SITE_REQUEUE=never", event = "echo '{\"event\":\"";
  EXPECT_EQ(job(lines, event + "resume\"}' >>run/events.jsonl; exit 93").code, 93);
  EXPECT_EQ(asked().find("scancel"), std::string::npos) << asked();
  EXPECT_EQ(job(lines, event + "no_progress\"}' >>run/events.jsonl; exit 93").code, 93);
  EXPECT_NE(asked().find("--name=exp-a --state=PENDING"), std::string::npos) << asked();
}

}  // namespace
}  // namespace tmamba
