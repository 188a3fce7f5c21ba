// `transmamba submit` without a SLURM: job scripts beside golden files for several styles of site, names that a shell
// or SLURM could misread, site files and command lines with mistakes. tests/slurm submits to a real one.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "kernels/base/check.h"
#include "launch/slurm/job_script.h"
#include "launch/slurm/site.h"
#include "tests/launch/program.h"
#include "tests/source_dir.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  EXPECT_TRUE(in) << file;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

const fs::path kSource = TMAMBA_SOURCE_DIR;
const fs::path kSites = kSource / "tests/launch/sites";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

class Submit : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = enter_test_folder("submit");
    folder_ = fs::canonical(folder_);
    prepare_bytes(20000);
    write_config("run.toml", "steps = 100\nglobal_batch = 256");
  }
  void TearDown() override {
    fs::current_path("/");
    fs::remove_all(folder_);
  }

  // The script that a dry run prints, with words for what differs between machines.
  std::string script(const std::string& options) {
    const Outcome outcome = transmamba("submit run.toml --dry-run " + options);
    EXPECT_EQ(outcome.code, 0) << outcome.output;
    const std::string program = command_line("", 0);
    return replaced(replaced(outcome.output, program.substr(0, program.size() - 1), "'PROGRAM'"), folder_.string(),
                    "/FOLDER");
  }

  void same_as_golden(const std::string& site, const std::string& options) {
    const std::string text = script("--site '" + (kSites / (site + ".env")).string() + "' " + options);
    const std::string body = read_file(kSource / "cluster/job.sh");
    ASSERT_GT(text.size(), body.size());
    EXPECT_EQ(text.substr(text.size() - body.size()), body);
    const std::string head = text.substr(0, text.size() - body.size());
    EXPECT_EQ(head, read_file(kSites / (site + ".sbatch"))) << "written instead:\n" << head;
    EXPECT_FALSE(fs::exists("run")) << "a dry run leaves something behind";
  }

  void refused(const std::string& options, const std::string& says) {
    const Outcome outcome = transmamba("submit run.toml " + options);
    EXPECT_EQ(outcome.code, 2) << outcome.output;
    EXPECT_NE(outcome.output.find(says), std::string::npos) << outcome.output;
  }

  fs::path folder_;
};

TEST_F(Submit, GpusBySrun) {
  same_as_golden("gpu-srun", "--nodes 16 --set run.device=cuda --set run.dir=/scratch/runs/tm-400m");
}
TEST_F(Submit, GpusByMpirun) {
  same_as_golden("gpu-mpirun", "--nodes 2 --set run.device=cuda --set run.dir=/scratch/runs/tm-400m --time 1:00:00");
}
TEST_F(Submit, CpusInAChain) { same_as_golden("cpu", "--nodes 4 --chain 3 --set run.dir=/scratch/runs/cpu"); }
TEST_F(Submit, ContainersInAnArray) {
  same_as_golden("container", "--nodes 1 --array 10 --set run.device=cuda --set run.dir=/scratch/runs/box");
}
TEST_F(Submit, WildNames) {
  same_as_golden("default",
                 "--nodes 2 --ranks-per-node 3 --set parallel.dp=0 --set train.global_batch=6 --set "
                 "\"run.dir=/tmp/it's; \\$(touch x) \\`id\\` \\\"100%\\\" & more\" --set 'train.sample_prompt=a b'");
}

// What the shell makes of a quoted word is the word.
TEST_F(Submit, QuotedWordsComeThroughTheShell) {
  for (const std::string word : {"plain", "two words", "it's", "\"", "a;b", "$(touch pwned)", "`id`", "$HOME", "a\\b",
                                 "*", "~", "!x", "#c", "", "-n", "a\tb", "\xc3\xa9"}) {
    const Outcome outcome = shell("printf '%s' " + shell_quoted(word));
    EXPECT_EQ(outcome.output, word);
  }
}

TEST_F(Submit, NamesOfJobs) {
  EXPECT_EQ(job_name("/a/run-1").substr(0, 6), "run-1-");
  EXPECT_NE(job_name("/a/run-1"), job_name("/b/run-1"));
  EXPECT_EQ(job_name("/a/run-1/"), job_name("/a/run-1"));
  EXPECT_EQ(job_name("/a/x;$(y) 'z'").substr(0, 13), "x___y___z_-" + job_name("/a/x;$(y) 'z'").substr(11, 2));
}

TEST_F(Submit, WhatCannotBeSubmitted) {
  refused("", "--nodes is missing");
  refused("--nodes 0", "--nodes 0: must be between 1 and 1048576");
  refused("--nodes 2 --array 2 --chain 2", "use one of them");
  refused("--nodes 3 --set parallel.sp=2", "3 ranks is not divisible by tp * sp = 1 * 2");
  refused("--nodes 3 --set train.global_batch=8", "train.global_batch = 8");
  refused("--nodes 2 --set run.device=cuda", "SITE_GPUS_PER_NODE");
  refused("--nodes 2 --set data.train=nowhere.h5", "nowhere.h5");
  refused("--nodes 1 --set run.memory_limit=0.0001", "this run does not fit");
  refused("--nodes 1 --set run.dir='\"a\\nb\"'", "control character");
  refused("--nodes 1 --set 'run.dir=a\\b'", "\\ in its name");
  refused("--nodes 1 --site nowhere.env", "--site nowhere.env: cannot read it: no such file");
}

// Nothing called sbatch anywhere.
TEST_F(Submit, NoSlurm) {
  const Outcome outcome = shell("PATH=/nowhere " + command_line("submit run.toml --nodes 1", 0));
  EXPECT_EQ(outcome.code, 2) << outcome.output;
  EXPECT_NE(outcome.output.find("sbatch was not found: this machine has no SLURM"), std::string::npos)
      << outcome.output;
  EXPECT_FALSE(fs::exists("run"));
}

void site_fails(const std::string& text, const std::string& says) {
  try {
    parse_site(text, "site.env");
    ADD_FAILURE() << "taken: " << text;
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find(says), std::string::npos) << error.what();
  }
}

TEST(Site, MistakesAreNamedWithTheirLine) {
  site_fails("# one\nSITE_PARTITON=gpu\n", "site.env:2: SITE_PARTITON: unknown variable");
  site_fails("SITE_GPUS_PER_NODE=four", "site.env:1: SITE_GPUS_PER_NODE = four: must be a number of at least 0");
  site_fails("SITE_GPUS_PER_NODE=-1", "must be a number of at least 0");
  site_fails("SITE_GPUS_PER_NODE=99999999999999999999", "must be a number of at least 0");
  site_fails("SITE_LAUNCHER=aprun", "must be srun or mpirun");
  site_fails("SITE_PARTITION=$(id)", "needs quotes");
  site_fails("SITE_PARTITION=\"$(id)\"", "needs single quotes");
  site_fails("SITE_PARTITION='a b'", "a character that SLURM does not allow");
  site_fails("SITE_PARTITION=a b", "needs quotes");
  site_fails("SITE_SETUP='module load x", "not closed");
  site_fails("SITE_SETUP='a' b", "follows the closing quote");
  site_fails("SITE_SBATCH_OPTIONS='--exclusive; rm'", "--name or --name=value");
  site_fails("# one\r\nSITE_PARTITION=gpu\r\n", "site.env:1: the line ends with CRLF");
  site_fails("SITE_SETUP='module load x\r\n'\r\n", "site.env:1: the line ends with CRLF");
  site_fails("export X", "must be NAME=value");
}

TEST(Site, ReadsWhatAShellReads) {
  const Site site = parse_site(read_file(kSites / "gpu-mpirun.env"), "gpu-mpirun.env");
  EXPECT_EQ(site.partition, "gpu");
  EXPECT_EQ(site.setup, "module purge\nmodule load openmpi/4.1 \"cuda/13\"");
  EXPECT_EQ(site.default_ranks(), 4);
  const Outcome outcome = shell(". '" + (kSites / "gpu-mpirun.env").string() + "'; printf '%s' \"$SITE_SETUP\"");
  EXPECT_EQ(outcome.output, site.setup);
  // The file that users fill in, as it is.
  const Site empty = parse_site(read_file(kSource / "cluster/site.env"), "site.env");
  EXPECT_EQ(empty.partition, "");
  EXPECT_EQ(empty.default_ranks(), 1);
}

}  // namespace
}  // namespace tmamba
