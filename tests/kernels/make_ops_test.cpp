#include <gtest/gtest.h>

#include "kernels/ops/ops.h"

namespace tmamba {
namespace {

TEST(MakeOps, GivesTheOpsOfTheDevice) {
  const auto ops = make_ops(Device::cpu);
  ASSERT_NE(ops, nullptr);
  EXPECT_EQ(ops->device(), Device::cpu);
  ops->synchronize();
}

}  // namespace
}  // namespace tmamba
