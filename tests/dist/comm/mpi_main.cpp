#include "tests/dist/comm/mpi_main.h"

#include <gtest/gtest.h>

#include "dist/world/device_world.h"

namespace tmamba {

namespace {
World* current = nullptr;
Communicator* current_comm = nullptr;

// Ranks other than 0 print only what fails, with their rank.
class FailurePrinter : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s:%d: %s\n", current->rank(), result.file_name(), result.line_number(),
                 result.summary());
  }
};
}  // namespace

World& test_world() { return *current; }
Communicator& test_comm() { return *current_comm; }

}  // namespace tmamba

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  // An exception on one rank must end the job, not leave the others in a collective of the test it left.
  testing::GTEST_FLAG(catch_exceptions) = false;
  return tmamba::run_main([](tmamba::World& world) {
    tmamba::current = &world;
    tmamba::select_device(world, tmamba::test_device());
    const auto comm = tmamba::make_device_communicator(world, tmamba::test_device());
    tmamba::current_comm = comm.get();
    if (world.rank() != 0) {
      auto& listeners = testing::UnitTest::GetInstance()->listeners();
      delete listeners.Release(listeners.default_result_printer());
      listeners.Append(new tmamba::FailurePrinter);
    }
    return RUN_ALL_TESTS();
  });
}
