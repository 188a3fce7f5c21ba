#include "launch/run/goodput.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <numeric>

#include "kernels/base/rng.h"
#include "launch/cli/wall_time.h"
#include "tests/launch/killed_run.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// Writes the logs of a synthetic run and computes what the ledger must return.
class History {
 public:
  explicit History(const fs::path& dir) : dir_(dir) {
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }

  void start(double before, double startup) {
    if (started_) truth[Spent::waiting] += before;
    now_ += before;
    now_ += startup;
    truth[Spent::startup] += startup;
    log("events.jsonl", {{"time", utc_text(now_)},
                         {"event", started_ ? "resume" : "start"},
                         {"step", step_},
                         {"ranks", 2},
                         {"startup_s", startup}});
    started_ = true;
  }
  void step(double seconds, double stall, bool skipped) {
    now_ += stall + seconds;
    truth[Spent::checkpoint] += stall;
    truth[skipped ? Spent::lost : Spent::training] += seconds;
    training_.push_back(skipped ? 0 : seconds);
    json line = {{"step", ++step_}, {"loss", 1.0}, {"step_ms", 1e3 * seconds}, {"time", now_}};
    if (stall > 0) line["save_stall_ms"] = 1e3 * stall;
    if (skipped) line["skipped"] = true;
    lines_.push_back(line);
  }
  void evaluate(double seconds) {
    now_ += seconds;
    evaluations_ += seconds;
    truth[Spent::evaluation] += seconds;
    lines_.push_back({{"step", step_}, {"valid_loss", 1.0}, {"eval_s", seconds}, {"time", now_}});
  }
  void save() {
    saved_ = step_;
    training_.clear();
    evaluations_ = 0;
  }
  // Everything since the last save will be repeated.
  void kill() {
    for (double seconds : training_) truth[Spent::training] -= seconds, truth[Spent::lost] += seconds;
    truth[Spent::evaluation] -= evaluations_, truth[Spent::lost] += evaluations_;
    for (const json& line : lines_) {
      if (line["step"] > saved_) log("lost.jsonl", line);
    }
    std::erase_if(lines_, [&](const json& line) { return line["step"] > saved_; });
    step_ = saved_;
    save();
  }
  void end(const std::string& kind, double stall) {
    now_ += stall;
    truth[Spent::checkpoint] += stall;
    log("events.jsonl", {{"time", utc_text(now_)}, {"event", kind}, {"step", step_}, {"save_stall_ms", 1e3 * stall}});
    save();
  }
  void pause(double seconds) { now_ += seconds; }
  void write() {
    for (const json& line : lines_) log("metrics.jsonl", line);
    lines_.clear();
  }

  std::map<Spent, double> truth;

 private:
  void log(const char* file, const json& line) { std::ofstream(dir_ / file, std::ios::app) << line.dump() << "\n"; }

  fs::path dir_;
  double now_ = 1.7e9;
  int64_t step_ = 0, saved_ = 0;
  bool started_ = false;
  double evaluations_ = 0;
  std::vector<double> training_;
  std::vector<json> lines_;
};

double sum_of(const Goodput& goodput) { return std::accumulate(goodput.seconds.begin(), goodput.seconds.end(), 0.0); }

TEST(Goodput, EveryMomentOfAMadeUpRunIsCountedOnce) {
  enter_test_folder("goodput");
  constexpr uint64_t kSeed = 11;
  for (uint64_t trial = 0; trial < 60; ++trial) {
    SCOPED_TRACE(testing::Message() << "seed " << kSeed << ", trial " << trial);
    const Philox random(kSeed, trial);
    uint64_t draws = 0;
    const auto draw = [&](double most) { return most * static_cast<double>(random.words(draws++)[0]) / 4294967296.0; };
    History history("made-up");
    int64_t kept = 0, kept_at_save = 0, lost = 0;
    const int starts = 1 + static_cast<int>(draw(5));
    for (int s = 0; s < starts; ++s) {
      // Times in the logs are whole milliseconds.
      const auto ms = [&](double most) { return std::round(1e3 * draw(most)) / 1e3; };
      history.start(ms(30), ms(10) + 0.5);
      const int steps = 1 + static_cast<int>(draw(30));
      for (int i = 0; i < steps; ++i) {
        history.step(0.1 + ms(2), draw(1) < 0.2 ? ms(1) : 0, false);
        ++kept;
        if (draw(1) < 0.1) history.evaluate(ms(3));
        if (draw(1) < 0.2) history.save(), kept_at_save = kept;
      }
      if (s + 1 == starts) {
        history.end(draw(1) < 0.5 ? "done" : "stop", ms(1));
      } else if (draw(1) < 0.5) {
        history.end("stop", ms(1));
        kept_at_save = kept;
      } else {
        history.kill();
        lost += kept - kept_at_save;
        kept = kept_at_save;
      }
    }
    history.write();
    const RunRecord record = read_run_logs("made-up");
    EXPECT_TRUE(record.problems.empty()) << record.problems.front();
    const Goodput goodput = goodput_of(record);
    for (size_t i = 0; i < kSpents; ++i) {
      const auto spent = static_cast<Spent>(i);
      EXPECT_NEAR(goodput.of(spent), history.truth[spent], 1e-2) << name_of(spent);
    }
    EXPECT_NEAR(sum_of(goodput), goodput.wall_seconds, 1e-9 * goodput.wall_seconds);
    EXPECT_EQ(goodput.attempts.size(), static_cast<size_t>(starts));
    EXPECT_EQ(goodput.steps, kept);
    EXPECT_EQ(goodput.lost_steps, lost);
    EXPECT_TRUE(goodput.complete);
  }
}

TEST(Goodput, SkippedStepsAreLostAndTimeAfterTheEndIsNotCounted) {
  enter_test_folder("goodput-end");
  History history("run");
  history.start(0, 2);
  history.step(1, 0, false);
  history.step(3, 0, true);
  history.end("done", 0);
  history.pause(86400);
  history.start(0, 1);  // resumes for more steps
  history.step(1, 0, false);
  history.end("done", 0);
  history.pause(86400);
  history.write();
  const Goodput goodput = goodput_of(read_run_logs("run"));
  EXPECT_NEAR(goodput.wall_seconds, 8, 1e-6);
  EXPECT_NEAR(goodput.of(Spent::lost), 3, 1e-6);
  EXPECT_NEAR(goodput.of(Spent::training), 2, 1e-6);
  EXPECT_NEAR(goodput.fraction(), 0.25, 1e-6);
  EXPECT_EQ(goodput.skipped_steps, 1);
  // An attempt that finds the run done changes nothing.
  History again("done");
  again.start(0, 2);
  again.step(1, 0, false);
  again.end("done", 0);
  again.pause(500);
  again.start(0, 1);
  again.write();
  EXPECT_NEAR(goodput_of(read_run_logs("done")).wall_seconds, 3, 1e-6);
}

// Clocks are set back, lines lack their time, and files are damaged: the parts still sum to the total.
TEST(Goodput, SumsToTheWholeWhateverTheLogsSay) {
  enter_test_folder("goodput-odd");
  constexpr uint64_t kSeed = 4;
  for (uint64_t trial = 0; trial < 200; ++trial) {
    SCOPED_TRACE(testing::Message() << "seed " << kSeed << ", trial " << trial);
    const Philox random(kSeed, trial);
    fs::remove_all("odd");
    fs::create_directories("odd");
    std::ofstream metrics("odd/metrics.jsonl"), lost("odd/lost.jsonl"), events("odd/events.jsonl");
    for (uint64_t i = 0; i < 60; ++i) {
      const auto w = random.words(i);
      const double time = 1e9 + static_cast<double>(w[0] % 1000);
      json line = {{"step", w[1] % 50},
                   {"time", time},
                   {"step_ms", static_cast<double>(w[2] % 90000) - 1000},
                   {"save_stall_ms", static_cast<double>(w[3] % 5000) - 100}};
      if (w[1] % 3 == 0) line["loss"] = 1.0;
      if (w[1] % 7 == 0) line["eval_s"] = -5 + static_cast<double>(w[2] % 100);
      if (w[1] % 11 == 0) line.erase("time");
      if (w[1] % 13 == 0) line["step_ms"] = nullptr;
      (w[3] % 4 == 0 ? lost : metrics) << (w[2] % 17 == 0 ? line.dump().substr(0, 9) : line.dump()) << "\n";
      const char* kinds[] = {"start", "resume", "stop", "done", "rollback", "checkpoint"};
      if (w[2] % 4 == 0) {
        events << json({{"time", utc_text(time)},
                        {"event", kinds[w[0] % 6]},
                        {"startup_s", static_cast<double>(w[3] % 50) - 5}})
                      .dump()
               << "\n";
      }
    }
    metrics.close(), lost.close(), events.close();
    const Goodput goodput = goodput_of(read_run_logs("odd"));
    EXPECT_NEAR(sum_of(goodput), goodput.wall_seconds, 1e-6);
    for (double seconds : goodput.seconds) EXPECT_GE(seconds, 0);
    double starts = 0;
    for (const AttemptRecord& start : goodput.attempts)
      starts += std::accumulate(start.seconds.begin(), start.seconds.end(), 0.0);
    EXPECT_NEAR(starts, goodput.wall_seconds, 1e-6);
    EXPECT_LE(goodput.wall_seconds, 1100);
  }
}

TEST(Goodput, AKilledRunsTimeIsAllAccountedFor) {
  const KilledRun& run = killed_run();
  ASSERT_EQ(run.code, 85) << run.output;
  std::ifstream in(run.folder / "run/goodput.json");
  const json goodput = json::parse(in);
  double sum = 0;
  for (const auto& [name, seconds] : goodput["seconds"].items()) sum += seconds.get<double>();
  const double wall = goodput["wall_seconds"].get<double>();
  EXPECT_NEAR(sum, wall, 0.01 * wall) << goodput.dump(1);
  // Measured from outside: the end of the last process after its last line, and the shell, are not in the ledger.
  EXPECT_LE(wall, run.seconds * 1.01);
  EXPECT_GE(wall, run.seconds - 2) << goodput.dump(1);
  ASSERT_EQ(goodput["starts"].size(), 2u);
  const json &first = goodput["starts"][0], &second = goodput["starts"][1];
  EXPECT_EQ(first["end"], "killed");
  EXPECT_EQ(second["end"], "stop");
  EXPECT_EQ(second["from_step"].get<int64_t>() % 20, 0);
  EXPECT_EQ(goodput["lost_steps"], first["to_step"].get<int64_t>() - second["from_step"].get<int64_t>());
  EXPECT_GE(second["seconds"]["waiting"].get<double>(), 1.4);  // it slept for 1.5 s
  EXPECT_LE(second["seconds"]["waiting"].get<double>(), run.seconds);
  EXPECT_GT(goodput["seconds"]["startup"].get<double>(), 0);
  EXPECT_GT(goodput["seconds"]["checkpoint"].get<double>(), 0);
  EXPECT_GT(goodput["seconds"]["evaluation"].get<double>(), 0);
  EXPECT_NE(run.output.find("% of"), std::string::npos) << run.output;
  // metrics.jsonl has each step once; repeated steps are also in lost.jsonl.
  const RunRecord record = read_run_logs(run.folder / "run");
  EXPECT_TRUE(record.problems.empty()) << record.problems.front();
  for (size_t i = 0; i < record.kept.steps.size(); ++i)
    ASSERT_EQ(record.kept.steps[i].step, static_cast<int64_t>(i + 1));
  EXPECT_EQ(std::ssize(record.lost.steps), goodput["lost_steps"].get<int64_t>());
}

TEST(WallTime, TextsReadBack) {
  EXPECT_EQ(utc_text(0), "1970-01-01T00:00:00.000Z");
  EXPECT_EQ(utc_text(1700000000.9999), "2023-11-14T22:13:21.000Z");
  EXPECT_NEAR(*utc_seconds("2023-11-14T22:13:20.125Z"), 1700000000.125, 1e-6);
  EXPECT_EQ(utc_seconds("2023-11-14T22:13:20Z"), 1700000000);  // without fractions, as older versions wrote it
  for (const char* text : {"", "yesterday", "2023-11-14", "2023-11-14T22:13:20", "2023-11-14T22:13:20.1x"})
    EXPECT_FALSE(utc_seconds(text)) << text;
  EXPECT_GE(process_age_seconds(), 0);
  EXPECT_LT(process_age_seconds(), 3600);
}

TEST(Goodput, AFailedAttemptReportsWhy) {
  const fs::path run = enter_test_folder("goodput-failed") / "run";
  fs::create_directories(run);
  const auto event = [&](double at, const std::string& kind, json details) {
    details.update({{"time", utc_text(1.7e9 + at)}, {"event", kind}});
    std::ofstream(run / "events.jsonl", std::ios::app) << details.dump() << "\n";
  };
  const auto step = [&](double at, int number) {
    std::ofstream(run / "metrics.jsonl", std::ios::app)
        << json{{"step", number}, {"loss", 1.0}, {"step_ms", 1000.0}, {"time", 1.7e9 + at}}.dump() << "\n";
  };
  // Killed; failed during startup, after it had found a damaged checkpoint; failed in a step.
  event(2, "start", {{"step", 0}, {"ranks", 1}, {"startup_s", 2}});
  step(3, 1);
  event(103, "damaged", {{"path", "x"}});
  event(104, "failed", {{"step", 0}, {"ranks", 1}, {"startup_s", 4}, {"problem", "cannot open x: why"}});
  event(202, "resume", {{"step", 1}, {"ranks", 1}, {"startup_s", 2}});
  step(203, 2);
  event(208, "failed", {{"step", 2}, {"problem", "rank 0: <odd>"}});
  const Goodput goodput = goodput_of(read_run_logs(run));
  ASSERT_EQ(goodput.attempts.size(), 3u);
  EXPECT_EQ(goodput.attempts[0].end, "killed");
  EXPECT_EQ(goodput.attempts[1].end, "failed");
  EXPECT_EQ(goodput.attempts[1].why, "cannot open x: why");
  EXPECT_EQ(goodput.attempts[2].end, "failed");
  EXPECT_NEAR(goodput.of(Spent::waiting), 97 + 96, 1e-6);
  EXPECT_NEAR(goodput.of(Spent::startup), 2 + 4 + 2, 1e-6);
  EXPECT_NEAR(goodput.of(Spent::training), 2, 1e-6);
  EXPECT_NEAR(goodput.of(Spent::lost), 5, 1e-6);
  ASSERT_EQ(transmamba("report run").code, 0);
  EXPECT_EQ(shell("grep -q 'failed: rank 0: &lt;odd&gt;' run/report.html").code, 0);
}

TEST(Goodput, TimesThatCannotBeAreLeftOut) {
  const fs::path run = enter_test_folder("goodput-times") / "run";
  fs::create_directories(run);
  std::ofstream(run / "events.jsonl") << R"({"time":"2023-11-14T22:13:20Z","event":"start","step":0,"startup_s":1e300})"
                                      << "\n"
                                      << R"({"time":"9999-11-14T22:13:20Z","event":"checkpoint","step":0})"
                                      << "\n";
  std::ofstream(run / "metrics.jsonl") << R"({"step":1,"loss":1,"step_ms":1000,"time":1700000001})"
                                       << "\n"
                                       << R"({"step":2,"loss":1,"step_ms":1000,"time":1e300})"
                                       << "\n"
                                       << R"({"step":3,"loss":1,"step_ms":1000,"time":-5})"
                                       << "\n";
  const RunRecord record = read_run_logs(run);
  EXPECT_EQ(record.problems.size(), 3u);
  EXPECT_NEAR(goodput_of(record).wall_seconds, 1, 1e-6);
}

}  // namespace
}  // namespace tmamba
