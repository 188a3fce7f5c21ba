// Training in jobs of a real SLURM: after each kind of fault the run equals one without a fault. The cases of a shard
// run at once in one cluster; most of the time they wait for SLURM.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <iostream>
#include <memory>

#include "kernels/base/clock.h"
#include "tests/slurm/case.h"
#include "tests/source_dir.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

// GoogleTest deals tests to shards in turn. The slow cases are dealt to the same one, so that only one shard is slow.
std::vector<CaseEntry> all_cases() {
  std::vector<CaseEntry> all, slow;
  for (const auto& cases : {chaos_cases(), fault_cases(), job_cases(), rank_cases(), study_cases(), submit_cases()}) {
    for (const CaseEntry& entry : cases) (entry.slow ? slow : all).push_back(entry);
  }
  for (size_t i = 0; i < slow.size(); ++i)
    all.insert(all.begin() + static_cast<std::ptrdiff_t>(i * SLURM_SHARDS), slow[i]);
  return all;
}

class Slurm : public testing::TestWithParam<size_t> {
 protected:
  static void SetUpTestSuite() {
    // Nodes that jobs share; one for preemption; two groups that lose a node; those of a chaos run.
    cluster_ = std::make_unique<VirtualCluster>(std::vector<std::string>{"common", "common", "common", "common",
                                                                         "taken", "lost", "lost", "lost", "beheaded",
                                                                         "beheaded", "beheaded", "chaos", "chaos"});
    std::cout << "cluster of 13 nodes idle after " << cluster_->start_seconds() << " s\n";
    const fs::path folder = cluster_->folder();
    fs::current_path(folder);
    prepare_bytes(100000);
    write_case_config(folder, folder / "data");
    quiet_ = std::make_unique<QuietRuns>(folder);
    const std::vector<CaseEntry> cases = all_cases();
    const testing::TestSuite& suite = *testing::UnitTest::GetInstance()->current_test_suite();
    for (int i = 0; i < suite.total_test_count(); ++i) {
      const testing::TestInfo& info = *suite.GetTestInfo(i);
      const size_t index = static_cast<size_t>(i);
      if (info.should_run()) start(index, cases.at(index));
    }
  }

  static void TearDownTestSuite() {
    running_.clear();
    quiet_.reset();
    fs::current_path("/");
    cluster_.reset();
  }

  static void start(size_t index, const CaseEntry& entry) {
    running_[index] = std::async(std::launch::async, [entry] {
      const auto begin = std::chrono::steady_clock::now();
      auto one = std::make_unique<Case>(*cluster_, *quiet_, entry.name);
      try {
        entry.run(*one);
      } catch (const std::exception& error) {
        one->expect(false, error.what());
      }
      one->note("ended after " + std::to_string(static_cast<int>(seconds_since(begin))) + " s");
      return one;
    });
  }

  inline static std::unique_ptr<VirtualCluster> cluster_;
  inline static std::unique_ptr<QuietRuns> quiet_;
  inline static std::map<size_t, std::future<std::unique_ptr<Case>>> running_;
};

TEST_P(Slurm, Case) {
  const std::unique_ptr<Case> done = running_.at(GetParam()).get();
  for (const std::string& problem : done->problems()) ADD_FAILURE() << problem;
  if (!done->problems().empty()) std::cout << done->story();
  if (!done->notes().empty()) std::cout << done->folder().filename().string() << ":" << done->notes() << "\n";
}

// The cluster ends with its owner process, even when that is killed.
TEST(Cluster, EndsWithItsOwner) {
  const fs::path folder = fs::temp_directory_path() / ("tmamba-owned-" + std::to_string(getpid()));
  const std::string script = std::string("'") + TMAMBA_SOURCE_DIR + "/tests/slurm/cluster.sh' ";
  const Outcome outcome =
      shell("sleep 100 & owner=$!; OWNER=$owner " + script + "start " + folder.string() + " one two; " +
            "controller=$(cat " + folder.string() + "/slurmctld.pid); kill -KILL $owner; " +
            "for i in $(seq 1000); do [ -d " + folder.string() + " ] || break; sleep 0.1; done; " +
            "kill -0 $controller 2>/dev/null && grep -q '^State:.[^Z]' /proc/$controller/status && echo lives; true");
  EXPECT_FALSE(fs::exists(folder)) << outcome.output;
  EXPECT_EQ(outcome.output.find("lives"), std::string::npos) << outcome.output;
}

std::string name_of(const testing::TestParamInfo<size_t>& one) { return all_cases()[one.param].name; }

INSTANTIATE_TEST_SUITE_P(, Slurm, testing::Range<size_t>(0, all_cases().size()), name_of);

}  // namespace
}  // namespace tmamba
