// bench comm on host tensors: every exchange along every axis, with figures that belong together.
#include <gtest/gtest.h>

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

TEST(BenchComm, RefusesOneRankAlone) {
  const Outcome outcome = transmamba("bench comm");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_NE(outcome.output.find("mpirun -n 2"), std::string::npos) << outcome.output;
}

}  // namespace
}  // namespace tmamba
