// The table of run.profile = "comm" shows differences from the plan.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "dist/comm/self_communicator.h"
#include "launch/train/comm_profile.h"

namespace tmamba {
namespace {

TEST(CommTable, DifferencesAreShown) {
  SelfCommunicator world("world");
  Mesh mesh(world, {});
  AxisTraffic planned;
  planned[4] = all_reduce_traffic(32, 1);
  planned[1] = 2 * all_reduce_traffic(1000, 2);  // planned but not executed
  planned[3] = all_reduce_traffic(64, 4);        // likewise
  CommProfile profile(mesh, world, planned);
  double number = 1;
  for (int step = 0; step < 2; ++step) {
    profile.begin_step();
    world.all_reduce(Tensor(&number, {1}, DType::f64), ReduceOp::sum).wait();
    profile.end_step();
    world.barrier();  // outside of a step: not counted
  }
  const nlohmann::json summary = profile.summary(world);
  EXPECT_EQ(summary["steps"], 2);
  ASSERT_EQ(summary["operations"].size(), 3u) << summary.dump(1);
  const auto& [sp, zero, all] = std::tie(summary["operations"][0], summary["operations"][1], summary["operations"][2]);
  EXPECT_EQ(sp["axis"], "sp");
  EXPECT_EQ(sp["planned_calls"], 2);
  EXPECT_EQ(sp["planned_bytes"], 2000);
  EXPECT_EQ(sp["bytes"], 0);
  EXPECT_EQ(sp["ranks_that_differ"], 1);
  EXPECT_EQ(zero["planned_calls"], 1);
  EXPECT_EQ(zero["planned_bytes"], 96);
  EXPECT_EQ(all["axis"], "world");
  EXPECT_EQ(all["calls"], 1);
  EXPECT_EQ(all["ranks_that_differ"], 0);
  const std::string table = comm_table(summary);
  EXPECT_NE(table.find("differs from the plan on 1 rank\n"), std::string::npos) << table;
  EXPECT_NE(table.find("2 of 3 operations differ from the plan."), std::string::npos) << table;
}

}  // namespace
}  // namespace tmamba
