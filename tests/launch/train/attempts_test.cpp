// One attempt at a time trains in a run directory; how a run that stops, hangs up or runs out of time says so.
#include <gtest/gtest.h>

#include <csignal>

#include "tests/launch/program.h"

namespace tmamba {
namespace {

class Attempts : public testing::Test {
 protected:
  void SetUp() override {
    enter_test_folder("attempts");
    prepare_bytes(60000);
  }
  void TearDown() override { leave_test_folder(); }

  static Outcome train(const std::string& more = "") { return transmamba("train run.toml " + more); }
  static Outcome beside(const std::string& script) { return tmamba::beside("train run.toml", 0, script); }
};

// A second start in the run directory of a healthy run names the holder and leaves; the run notices nothing.
TEST_F(Attempts, ASecondStartIsRefused) {
  write_config("run.toml", "steps = 100000\nglobal_batch = 2\n[checkpoint]\nevery = 0");
  const Outcome outcome = beside("until_ '[ $(steps) -ge 1 ]'; SLURM_JOB_ID=78 " + command_line("train run.toml", 0) +
                                 " >second.log 2>&1; echo second: $?; echo holder: process $job; "
                                 "last=$(($(steps) + 20)); until_ '[ $(steps) -ge $last ]'; touch run/STOP");
  EXPECT_EQ(outcome.code, 85) << outcome.output;
  EXPECT_NE(outcome.output.find("second: 93"), std::string::npos) << outcome.output << read_file("second.log");
  const size_t holder = outcome.output.find("holder: process ");
  ASSERT_NE(holder, std::string::npos);
  const std::string name = outcome.output.substr(holder + 8, outcome.output.find('\n', holder) - holder - 8) + " on ";
  EXPECT_NE(read_file("second.log").find(name), std::string::npos) << read_file("second.log");
  EXPECT_EQ(events("start").size(), 1u);
  EXPECT_TRUE(events("resume").empty());
}

// The directory is taken over while the holder is stopped: when it wakes up it writes nothing more.
TEST_F(Attempts, AStartThatWasReplacedWritesNothingMore) {
  write_config("run.toml",
               "steps = 100000\nglobal_batch = 2\nsample_tokens = 1\neval_sequences = 1\n[checkpoint]\nevery = 5");
  const Outcome outcome = tmamba::beside(
      "train run.toml", 0,
      "held; " + command_line("train run.toml --take-over --set train.steps=30", 0) +
          " >second.log 2>&1; echo second: $?; (cd run; ls checkpoints; cksum *.json* samples.txt) >before; "
          "kill -CONT $held; wait $job; code=$?; (cd run; ls checkpoints; cksum *.json* samples.txt) >after; "
          "diff before after || echo it wrote; exit $code",
      12);
  EXPECT_EQ(outcome.code, 93) << outcome.output << read_file("second.log");
  EXPECT_NE(outcome.output.find("second: 0"), std::string::npos) << outcome.output << read_file("second.log");
  EXPECT_NE(outcome.output.find("another attempt of this run has taken over"), std::string::npos) << outcome.output;
  EXPECT_EQ(outcome.output.find("it wrote"), std::string::npos) << outcome.output;
  EXPECT_EQ(series("run", "loss").size(), 30u);
}

TEST_F(Attempts, AHangupSavesUnlessItIsIgnored) {
  std::signal(SIGHUP, SIG_DFL);  // the test itself may run under nohup
  write_config("run.toml", "steps = 100000\nglobal_batch = 2\n[checkpoint]\nevery = 0");
  const Outcome outcome = beside("until_ '[ $(steps) -ge 1 ]'; kill -HUP $job");
  EXPECT_EQ(outcome.code, 85) << outcome.output;
  EXPECT_NE(outcome.output.find("SIGHUP: saved step"), std::string::npos) << outcome.output;
  // As under nohup.
  const Outcome ignoring = shell("(trap '' HUP; exec " + command_line("train run.toml", 0) +
                                 ") & job=$!; n=$(grep -c loss run/metrics.jsonl); "
                                 "wait_for() { for i in $(seq 6000); do [ $(grep -c loss run/metrics.jsonl) -gt $1 ] "
                                 "&& return; sleep 0.01; done; }; "
                                 "wait_for $n; kill -HUP $job; wait_for $(($n + 20)); touch run/STOP; wait $job");
  EXPECT_EQ(ignoring.code, 85) << ignoring.output;
  EXPECT_NE(ignoring.output.find("STOP: saved step"), std::string::npos) << ignoring.output;
}

TEST_F(Attempts, ARunThatItsMinutesEndSaysSo) {
  write_config("run.toml", "steps = 100000\nminutes = 0.01\nglobal_batch = 2\nsample_tokens = 1\neval_sequences = 1");
  const Outcome outcome = train();
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_TRUE(events("done").empty());
  ASSERT_EQ(events("time_up").size(), 1u);
  const std::string why = "stopped by train.minutes at step " + events("time_up")[0]["step"].dump() + " of 100000";
  const size_t first = outcome.output.find(why);
  ASSERT_NE(first, std::string::npos) << outcome.output;                                // in the log
  EXPECT_NE(outcome.output.find(why, first + 1), std::string::npos) << outcome.output;  // and in the final table
  const auto summary = nlohmann::json::parse(read_file("run/summary.json"));
  EXPECT_EQ(summary.at("stopped_by"), "train.minutes");
  EXPECT_EQ(summary.at("total_steps"), 100000);
  ASSERT_EQ(transmamba("report run -o report.html").code, 0);
  EXPECT_NE(read_file("report.html").find(why), std::string::npos);
}

// A report knows whether the process of an attempt without a last event is there.
TEST_F(Attempts, AReportSaysRunningOnlyOfARunThatRuns) {
  write_config("run.toml", "steps = 100000\nglobal_batch = 2\n[checkpoint]\nevery = 0");
  const std::string report = command_line("report run -o ", 0);
  const Outcome outcome = beside("until_ '[ $(steps) -ge 1 ]'; " + report + "alive.html; kill -KILL $job; wait $job; " +
                                 report + "killed.html");
  const std::string alive = read_file("alive.html"), killed = read_file("killed.html");
  ASSERT_FALSE(alive.empty()) << outcome.output;
  EXPECT_NE(alive.find("report. running; from"), std::string::npos);
  EXPECT_NE(killed.find("report. terminated unexpectedly; from"), std::string::npos);
}

}  // namespace
}  // namespace tmamba
