// A loss that is not finite on one rank makes all ranks skip the same step and touch nothing; after three in a row the
// run goes back to its latest checkpoint.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "data/tokens/prepare.h"
#include "dist/comm/collective_guard.h"
#include "launch/cli/exit_code.h"
#include "launch/train/replica_check.h"
#include "launch/train/trainer.h"
#include "tests/dist/comm/mpi_main.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

class NonFinite : public testing::Test {
 protected:
  void SetUp() override {
    World& world = test_world();
    const std::string name = std::string("nonfinite-") + testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ = fs::path(broadcast_text(world.comm(), world.rank() == 0 ? enter_test_folder(name).string() : ""));
    if (world.rank() == 0) {
      write_text("text.txt", 60000);
      prepare({.inputs = {"text.txt"}, .output = "data", .held_out = 0.1});
      write_config("run.toml", "steps = 12\nglobal_batch = 4\n[checkpoint]\nevery = 2");
    }
    world.comm().barrier();
    fs::current_path(folder_);
  }
  void TearDown() override {
    test_world().comm().barrier();
    fs::current_path("/");
    if (test_world().rank() == 0) fs::remove_all(folder_);
  }

  fs::path folder_;
};

// An element of the embedding of the blank, which is in every batch.
constexpr int64_t kPoisoned = ' ' * 32 + 5;

std::vector<float> host_copy(const Tensor& flat) { return {flat.data<float>(), flat.data<float>() + flat.numel()}; }

TEST_F(NonFinite, OneRankMakesAllSkipTheStep) {
  World& world = test_world();
  Trainer trainer(load_config("run.toml", {}), world);
  EXPECT_TRUE(trainer.train_step(1).applied);
  const std::vector<float> before = host_copy(trainer.params());
  float* weight = trainer.params().data<float>() + kPoisoned;
  const float kept = *weight;
  if (world.rank() == world.size() - 1) *weight = std::numeric_limits<float>::quiet_NaN();
  const StepOutcome poisoned = trainer.train_step(2);
  EXPECT_FALSE(poisoned.applied);
  EXPECT_TRUE(std::isnan(poisoned.loss) || !std::isfinite(poisoned.grad_norm));
  *weight = kept;
  EXPECT_EQ(host_copy(trainer.params()), before);
  const StepOutcome clean = trainer.train_step(3);
  EXPECT_TRUE(clean.applied);
  EXPECT_TRUE(std::isfinite(clean.loss));
}

// Weights that went bad in memory: the run goes back to the latest checkpoint, once, and on from there.
TEST_F(NonFinite, ThreeInARowRollBackToTheLatestCheckpoint) {
  World& world = test_world();
  {
    Trainer trainer(load_config("run.toml", {"train.steps=4", "train.warmup=0"}), world);
    ASSERT_EQ(trainer.run(), kDone);
  }
  if (world.rank() == 0) fs::remove("run/summary.json");
  world.comm().barrier();
  Trainer trainer(load_config("run.toml", {"train.warmup=0"}), world);
  ASSERT_EQ(trainer.state().step, 4);
  // Of all copies: a step hands out those of the owners, so that one bad copy of another rank would heal.
  trainer.params().data<float>()[kPoisoned] = std::numeric_limits<float>::quiet_NaN();
  ASSERT_EQ(trainer.run(), kDone);
  EXPECT_EQ(trainer.state().step, 12);
  EXPECT_EQ(trainer.state().skipped, 0);
  EXPECT_EQ(trainer.state().skipped_sequences, 3 * 4);
  world.comm().barrier();
  if (world.rank() == 0) {
    int64_t step = 0;
    for (const nlohmann::json& line : metrics("run")) {
      if (!line.contains("loss")) continue;
      EXPECT_EQ(line["step"], ++step);
      EXPECT_FALSE(line.contains("skipped"));
    }
    EXPECT_EQ(step, 12);
    EXPECT_TRUE(CheckpointReader("run/checkpoints/step-00000012").verify().empty());
  }
}

// Weights of a token that no batch has: losses stay finite, and only the save can find them.
TEST_F(NonFinite, WeightsThatAreNotFiniteAreNeverSaved) {
  World& world = test_world();
  constexpr int64_t kUnused = 200 * 32 + 5;
  for (const auto& [element, problem] : {std::pair(kUnused,
                                                   "step 5 could not be saved: the weights are not finite: "
                                                   "embedding.weight on rank 0"),
                                         std::pair(kPoisoned, "step 5, the last of the run, is not finite")}) {
    {
      Trainer trainer(load_config("run.toml", {"train.steps=4", "train.warmup=0"}), world);
      ASSERT_EQ(trainer.run(), kDone);
    }
    Trainer trainer(load_config("run.toml", {"train.steps=5", "train.warmup=0", "checkpoint.every=1"}), world);
    trainer.params().data<float>()[element] = std::numeric_limits<float>::quiet_NaN();
    try {
      trainer.run();
      FAIL() << "saved weights that are not finite";
    } catch (const UserError& error) {
      FAIL() << error.what();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(problem), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("step-00000004"), std::string::npos) << error.what();
    }
    world.comm().barrier();
    if (world.rank() == 0) {
      EXPECT_EQ(list_checkpoints("run/checkpoints").back().filename(), "step-00000004");
      EXPECT_TRUE(CheckpointReader("run/checkpoints/step-00000004").verify().empty());
      EXPECT_EQ(read_file("run/metrics.jsonl").find("nan"), std::string::npos);
    }
    world.comm().barrier();
  }
}

// Every step is a spike: going back helps nothing, and the run ends with its last good checkpoint.
TEST_F(NonFinite, TroubleThatComesBackEndsTheRunWithTheLastGoodCheckpoint) {
  World& world = test_world();
  const auto start = [&] {
    Trainer trainer(load_config("run.toml", {"train.spike_window=2", "train.spike_sigmas=1e-9", "train.warmup=0",
                                             "train.lr=0", "train.min_lr=0", "train.steps=200"}),
                    world);
    trainer.run();
  };
  try {
    start();
    FAIL() << "went on through nothing but spikes";
  } catch (const UserError& error) {
    FAIL() << error.what();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("3 steps in a row"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("before"), std::string::npos) << error.what();
  }
  world.comm().barrier();
  if (world.rank() == 0) {
    std::ifstream in("run/events.jsonl");
    int back = 0, spikes = 0;
    for (std::string line; std::getline(in, line);) {
      const auto event = nlohmann::json::parse(line);
      back += event["event"] == "rollback";
      spikes += event["event"] == "skip" && event["why"] == "spike";
    }
    EXPECT_GE(back, 1);
    EXPECT_GE(spikes, 6);
    const auto all = list_checkpoints("run/checkpoints");
    ASSERT_FALSE(all.empty());
    EXPECT_TRUE(CheckpointReader(all.back()).verify().empty());
  }
}

// A bit that flips on one rank is found at the next check, and the rank is named.
TEST_F(NonFinite, AReplicaThatDiffersIsNamed) {
  World& world = test_world();
  Trainer trainer(load_config("run.toml", {"train.replica_check_every=2", "train.steps=4"}), world);
  const int last = world.size() - 1;
  if (world.rank() == last) {
    float& weight = trainer.params().data<float>()[kPoisoned];
    weight = std::nextafter(weight, 1.0F);
  }
  if (world.size() == 1) {
    EXPECT_EQ(trainer.run(), kDone);
    return;
  }
  // The owner of the row may hand its own value to all; look before it does.
  try {
    check_replicas(world.comm(), {1, 1, world.size()}, world.hosts(), ParameterTable(trainer.config().model),
                   trainer.params(), 0);
    FAIL() << "the replicas differ";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("rank " + std::to_string(last)), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace tmamba
