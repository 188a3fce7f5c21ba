// A run resumes at its place in the data, whatever batch, ranks or sequence length it has then; ends that cannot be
// reached are refused before the first step.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

class Place : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder("place");
    write_text("text.txt", 60000);
    ASSERT_EQ(transmamba("prepare text.txt --output data --held-out 0.1").code, 0);
    write_config("run.toml", "steps = 4\nglobal_batch = 4\nsample_tokens = 1\ndtype = \"float64\"\n" + fixed_weights_,
                 "");
  }
  void TearDown() override { leave_test_folder(); }

  static Outcome train(const std::string& options, int ranks = 0) {
    return transmamba("train run.toml " + options, ranks);
  }
  static void done(const std::string& options, int ranks = 0) {
    const Outcome outcome = train(options, ranks);
    EXPECT_EQ(outcome.code, 0) << options << "\n" << outcome.output;
  }
  // The sums of losses of steps (first, last] of a run; equal sums mean that the same sequences were read.
  static double sum(const std::string& run, size_t first, size_t last, double weight) {
    const std::vector<double> losses = series(run, "loss");
    EXPECT_EQ(losses.size(), last) << run;
    double total = 0;
    for (size_t i = first; i < losses.size(); ++i) total += weight * losses[i];
    return total;
  }
  static nlohmann::json last_event(const std::string& run, const std::string& kind) {
    std::ifstream in(run + "/events.jsonl");
    nlohmann::json last;
    for (std::string line; std::getline(in, line);) {
      const auto event = nlohmann::json::parse(line);
      if (event["event"] == kind) last = event;
    }
    return last;
  }

  // Weights stay, so a loss names the sequences that it was computed on.
  std::string fixed_weights_ = "min_lr = 0\n";
  const std::string still_ = " --set train.lr=0 --set train.eval_sequences=1";
};

// 24 sequences with steps of 4; then 4 steps of 4 and 4 steps of 2: sequences 16 to 23, on any ranks.
TEST_F(Place, AnotherBatchReadsEverySequenceOnce) {
  done(still_ + " --set run.dir=whole --set train.steps=6");
  const double expected = sum("whole", 4, 6, 4);
  done(still_ + " --set run.dir=first");
  for (const auto& [ranks, batch, layout] :
       {std::tuple(0, 2, ""), std::tuple(2, 2, ""), std::tuple(2, 8, " --set parallel.sp=2"),
        std::tuple(2, 4, " --set parallel.tp=2 --set train.micro_batch=1"),
        std::tuple(2, 8, " --set train.micro_batch=2")}) {
    fs::remove_all("run");
    fs::copy("first", "run", fs::copy_options::recursive);
    const int steps = 4 + 8 / batch;
    done(still_ + " --set train.global_batch=" + std::to_string(batch) + " --set train.steps=" + std::to_string(steps) +
             layout,
         ranks);
    EXPECT_NEAR(sum("run", 4, static_cast<size_t>(steps), batch), expected, 1e-10 * expected) << ranks << layout;
    const nlohmann::json event = last_event("run", "batch_changed");
    EXPECT_EQ(event.is_null() ? 0 : event["tokens"].get<int>(), batch == 4 ? 0 : 16 * 64) << layout;
  }
  ASSERT_EQ(transmamba("report run").code, 0);
  EXPECT_NE(read_file("run/report.html").find("<b>batch_changed</b>"), std::string::npos);
}

TEST_F(Place, AnotherSequenceLengthContinuesAtTheToken) {
  done(still_ + " --set run.dir=whole --set train.steps=6");
  done(still_);
  const Outcome outcome = train(still_ + " --set data.seq_len=32 --set train.steps=8 --set model.schedule=[0]");
  EXPECT_EQ(outcome.code, 2);  // another model
  const Outcome changed = train(still_ + " --set data.seq_len=32 --set train.steps=8");
  ASSERT_EQ(changed.code, 0) << changed.output;
  EXPECT_NE(changed.output.find("from token 1024 of the run on: sequences of 32 tokens, was 64"), std::string::npos)
      << changed.output;
  const auto event = last_event("run", "stretch");
  EXPECT_EQ(event["first_token"], 1024);
  EXPECT_EQ(event["token_of_epoch"], 1024);
  done(still_ + " --set train.steps=10");  // back: 4 x 64 x 4 + 4 x 32 x 4 tokens are read
  EXPECT_EQ(last_event("run", "stretch")["token_of_epoch"], 1024 + 512);
}

TEST_F(Place, TokensAreTokensTrained) {
  const std::string tokens = " --set train.steps=0 --set train.tokens=2048 --set checkpoint.every=4";
  done(tokens + " --set train.steps=0");
  EXPECT_EQ(series("run", "loss").size(), 8u);
  fs::remove_all("run/checkpoints/step-00000008"), fs::remove("run/checkpoints/latest");
  done(tokens + " --set train.global_batch=2");
  EXPECT_EQ(series("run", "loss").size(), 4u + 8u);
  EXPECT_EQ(nlohmann::json::parse(read_file("run/summary.json"))["tokens"], 2048);
}

TEST_F(Place, OtherContentsAtTheSamePathAreRefusedUnlessAccepted) {
  done(still_);
  const auto rewrite = [](const char* file) {
    write_text("other.txt", 50000, 7);
    ASSERT_EQ(transmamba("prepare other.txt --output other --held-out 0.1 --overwrite").code, 0);
    fs::copy_file(std::string("other/") + file, std::string("data/") + file, fs::copy_options::overwrite_existing);
  };
  rewrite("valid.h5");
  const Outcome valid = train(still_ + " --set train.steps=5");
  EXPECT_EQ(valid.code, 2);
  EXPECT_NE(valid.output.find("validation set valid: path = data/valid.h5 has other contents"), std::string::npos)
      << valid.output;
  rewrite("train.h5");
  for (int ranks : {0, 2}) {
    const Outcome refused = train(still_ + " --set train.steps=5 --set data.valid=", ranks);
    EXPECT_EQ(refused.code, 2) << refused.output;
    EXPECT_NE(refused.output.find("data.train = data/train.h5 has other contents"), std::string::npos)
        << refused.output;
  }
  const std::string accept = still_ + " --set train.steps=5 --set data.changed=accept";
  done(accept);
  EXPECT_EQ(last_event("run", "data_changed")["path"], "data/valid.h5");
  EXPECT_EQ(last_event("run", "stretch")["token_of_epoch"], 0);
  // Its first sequences are those that a new run reads.
  done(still_ + " --set train.steps=1 --set run.dir=new");
  EXPECT_NEAR(sum("run", 4, 5, 1), sum("new", 0, 1, 1), 1e-12);
  // A copy elsewhere has the same identity: the run continues.
  fs::copy("data", "copy", fs::copy_options::recursive);
  done(still_ + " --set train.steps=6 --set data.train=copy/train.h5 --set data.valid=copy/valid.h5");
  done(still_ + " --set train.steps=2 --set run.dir=new");
  EXPECT_NEAR(sum("run", 5, 6, 1), sum("new", 1, 2, 1), 1e-12);
}

TEST_F(Place, ALongerRunSaysThatTheRateJumps) {
  done("--set train.warmup=0 --set train.min_lr=1e-4");
  const Outcome outcome = train("--set train.warmup=0 --set train.min_lr=1e-4 --set train.steps=8");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_NE(outcome.output.find("the learning rate jumps from 1.00e-04"), std::string::npos) << outcome.output;
  EXPECT_EQ(last_event("run", "rate_jump")["was"], 1e-4);
  EXPECT_NE(train("--check --set train.min_lr=1e-4").output.find("warning: train.warmup = 5 is longer than the run"),
            std::string::npos);
}

TEST_F(Place, WhatTheEndNeedsIsCheckedFirst) {
  std::ofstream("short.txt") << "too short";
  ASSERT_EQ(transmamba("prepare short.txt --output short --held-out 0").code, 0);
  for (const char* options : {"--set data.valid=short/train.h5 --check", "--set data.valid=short/train.h5",
                              "--set train.eps=0", "--set train.global_batch=1000000000 --check",
                              "--set train.global_batch=1000000000 --set train.micro_batch=1"}) {
    for (int ranks : {0, 2}) {
      const Outcome outcome = train(options, ranks);
      EXPECT_EQ(outcome.code, 2) << options << "\n" << outcome.output;
    }
  }
  EXPECT_FALSE(fs::exists("run"));
}

// The weights are saved before; the next attempt evaluates again.
TEST_F(Place, AStopIsMetDuringAnEvaluation) {
  write_text("big.txt", 4000000);
  ASSERT_EQ(transmamba("prepare big.txt --output big --held-out 0").code, 0);
  const Outcome outcome = beside("train run.toml --set train.steps=1 --set data.valid=big/train.h5", 2,
                                 "until_ '[ -e run/checkpoints/latest ]'; sleep 1; touch run/STOP");
  EXPECT_EQ(outcome.code, 85) << outcome.output;
  EXPECT_NE(outcome.output.find("STOP: saved step 1 and stopped"), std::string::npos) << outcome.output;
  EXPECT_TRUE(series("run", "valid_loss").empty());
  EXPECT_FALSE(fs::exists("run/summary.json"));
  EXPECT_FALSE(fs::exists("run/STOP"));
  done("--set train.steps=1");
  EXPECT_EQ(series("run", "valid_loss").size(), 1u);
}

}  // namespace
}  // namespace tmamba
