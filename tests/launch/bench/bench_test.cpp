// bench comm on host tensors: every collective along every axis, with consistent figures.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>

#include "tests/launch/program.h"

namespace tmamba {
namespace {

TEST(BenchComm, MeasuresEveryExchangeAlongEveryAxis) {
  const Outcome outcome =
      transmamba("bench comm --json --min-bytes 1024 --max-bytes 20000 --set parallel.sp=2 --set run.threads=1", 4);
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const nlohmann::json result = nlohmann::json::parse(outcome.output);
  std::map<std::string, std::set<std::string>> by_axis;
  for (const nlohmann::json& row : result["exchanges"]) {
    by_axis[row["axis"]].insert(row["exchange"].get<std::string>() + " " + row["bytes"].dump());
    const double bytes = row["bytes"], us = row["us"], rate = row["algorithm_gb_per_s"], bus = row["bus_gb_per_s"];
    EXPECT_GT(us, 0) << row;
    EXPECT_NEAR(rate, bytes / us / 1e3, 1e-6 * rate) << row;
    const double ranks = row["ranks"];
    const std::string exchange = row["exchange"];
    const double part = (ranks - 1) / ranks;
    EXPECT_NEAR(bus, rate * (exchange == "all_reduce" ? 2 * part : exchange == "send_recv" ? 1 : part), 1e-6 * bus);
  }
  ASSERT_EQ(by_axis.size(), 3u) << outcome.output;
  for (const char* axis : {"sp", "dp", "zero"}) EXPECT_EQ(by_axis[axis].size(), 7u * 3) << axis;  // 1, 4, 16 KiB
}

TEST(BenchStep, ReportsWhatRanksWaitFor) {
  const Outcome outcome = transmamba(
      "bench step --json --steps 2 --threads 1 --set model.dim=64 --set model.ffn=96 --set model.vocab=200 "
      "--set data.seq_len=512 --set train.micro_batch=1 --set parallel.tp=2 --set parallel.sp=2",
      4);
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  const nlohmann::json r = nlohmann::json::parse(outcome.output);
  const auto number = [&](const char* name) { return r.at(name).get<double>(); };
  EXPECT_EQ(number("ranks"), 4);
  EXPECT_EQ(number("tp") * number("sp") * number("dp"), 4);
  EXPECT_EQ(number("batch"), 1);
  EXPECT_NEAR(number("tokens_per_s"), 512 / number("step_ms") * 1e3, 1e-6 * number("tokens_per_s"));
  EXPECT_NEAR(number("exposed_ms"), number("step_ms") - number("work_ms"), 1e-9 * number("step_ms"));
  EXPECT_GT(number("balance"), 0);
  EXPECT_LE(number("balance"), 1 + 1e-9);
  EXPECT_GT(number("predicted_step_ms"), number("predicted_exposed_ms"));
}

TEST(BenchStep, StatesItsMfu) {
  const std::string step =
      "bench step --no-roof --json --steps 1 --threads 1 --set model.dim=32 --set model.heads=2 --set model.ffn=32 "
      "--set model.vocab=64 --set data.seq_len=64 --set train.micro_batch=1";
  const nlohmann::json unknown = nlohmann::json::parse(transmamba(step).output);
  EXPECT_FALSE(unknown.contains("mfu"));
  EXPECT_NE(unknown["peak_source"].get<std::string>().find("set run.peak_tflops"), std::string::npos) << unknown;
  const nlohmann::json known = nlohmann::json::parse(transmamba(step + " --set run.peak_tflops=0.5").output);
  EXPECT_EQ(known["peak_tflops"], 0.5);
  // Nothing is recomputed: the model's FLOPs are nearly all that were counted.
  const double counted = known["gflop"].get<double>() * 1e9 / (known["step_ms"].get<double>() / 1e3) / 0.5e12;
  EXPECT_NEAR(known["mfu"].get<double>(), counted, 0.2 * counted) << known;
}

TEST(BenchStep, RefusesWhatDoesNotFit) {
  const Outcome outcome = transmamba("bench step --no-roof --set run.memory_limit=0.01");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.output.find("this run does not fit: rank 0 needs"), std::string::npos) << outcome.output;
}

TEST(BenchOps, RefusesSeveralRanks) {
  const Outcome outcome = transmamba("bench ops", 2);
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.output.find("bench step"), std::string::npos) << outcome.output;
}

TEST(BenchComm, RefusesOneRankAlone) {
  const Outcome outcome = transmamba("bench comm");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.output.find("mpirun -n 2"), std::string::npos) << outcome.output;
}

TEST(BenchOps, SavesRatesThatThePlannerReads) {
  enter_test_folder("bench-machine");
  prepare_bytes();
  write_config("run.toml", "steps = 4\nglobal_batch = 2\nmicro_batch = 2");
  std::ofstream("machine.json") << "{}";  // is replaced
  const Outcome bench = transmamba("bench ops run.toml --steps 2 --threads 1 --save-machine machine.json");
  ASSERT_EQ(bench.code, 0) << bench.output;
  const nlohmann::json machine = nlohmann::json::parse(read_file("machine.json"));
  EXPECT_NE(machine["name"].get<std::string>().find("cpu, 1 threads, float32"), std::string::npos) << machine;
  const Outcome printed = transmamba("plan run.toml --machine machine.json --print-machine");
  ASSERT_EQ(printed.code, 0) << printed.output;
  EXPECT_EQ(nlohmann::json::parse(printed.output), machine);
  const Outcome plan = transmamba("plan run.toml --machine machine.json --json");
  ASSERT_EQ(plan.code, 0) << plan.output;
  EXPECT_GT(nlohmann::json::parse(plan.output)["step_s"].get<double>(), 0);
  EXPECT_EQ(transmamba("bench step --steps 1 --save-machine machine.json").code, 2);
}

}  // namespace
}  // namespace tmamba
