#include <gtest/gtest.h>

#include "kernels/ops/ops.h"

namespace tmamba {
namespace {

TEST(NoCuda, ReportsHowToBuildIt) {
  try {
    make_ops(Device::cuda);
    FAIL() << "a build without CUDA made CUDA ops";
  } catch (const UserError& e) {
    EXPECT_NE(std::string(e.what()).find("TMAMBA_CUDA=ON"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace tmamba
