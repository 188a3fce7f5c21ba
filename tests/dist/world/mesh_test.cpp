#include "dist/world/mesh.h"

#include <gtest/gtest.h>

#include "tests/dist/comm/mpi_main.h"

namespace tmamba {
namespace {

// World ranks of the members, in their order on `comm`.
std::vector<int> members(Communicator& comm, int world_rank) {
  std::vector<int> ranks(static_cast<size_t>(comm.size()));
  const std::vector<int64_t> counts(ranks.size(), 1);
  comm.all_gather(Tensor(ranks.data(), {comm.size()}, DType::i32), Tensor(&world_rank, {1}, DType::i32), counts).wait();
  return ranks;
}

TEST(Mesh, EveryShapeOfThisWorld) {
  World& world = test_world();
  const int rank = world.rank(), size = world.size();
  for (int tp = 1; tp <= size; ++tp) {
    for (int sp = 1; sp <= size; ++sp) {
      if (size % (tp * sp) != 0) continue;
      const MeshShape shape = mesh_shape(tp, sp, 0, size);
      ASSERT_EQ(shape.size(), size);
      Mesh mesh(world.comm(), shape);
      const MeshCoordinates at = shape.coordinates(rank);
      ASSERT_EQ(mesh.coordinates(), at);
      ASSERT_EQ(shape.rank_of(at), rank);
      EXPECT_EQ(mesh.tp().rank(), at.tp);
      EXPECT_EQ(mesh.sp().rank(), at.sp);
      EXPECT_EQ(mesh.dp().rank(), at.dp);
      EXPECT_EQ(mesh.zero().rank(), shape.zero_rank(at));

      std::vector<int> expected_tp, expected_sp, expected_dp, expected_zero;
      for (int i = 0; i < shape.tp; ++i) expected_tp.push_back(shape.rank_of({i, at.sp, at.dp}));
      for (int i = 0; i < shape.sp; ++i) expected_sp.push_back(shape.rank_of({at.tp, i, at.dp}));
      for (int i = 0; i < shape.dp; ++i) expected_dp.push_back(shape.rank_of({at.tp, at.sp, i}));
      for (int d = 0; d < shape.dp; ++d) {
        for (int s = 0; s < shape.sp; ++s) expected_zero.push_back(shape.rank_of({at.tp, s, d}));
      }
      EXPECT_EQ(members(mesh.tp(), rank), expected_tp) << "tp " << tp << " sp " << sp;
      EXPECT_EQ(members(mesh.sp(), rank), expected_sp) << "tp " << tp << " sp " << sp;
      EXPECT_EQ(members(mesh.dp(), rank), expected_dp) << "tp " << tp << " sp " << sp;
      EXPECT_EQ(members(mesh.zero(), rank), expected_zero) << "tp " << tp << " sp " << sp;
      EXPECT_EQ(mesh.zero().name(), "zero");
    }
  }
}

TEST(Mesh, RefusesAnotherNumberOfRanks) {
  const int size = test_world().size();
  EXPECT_THROW(Mesh(test_world().comm(), MeshShape{size, 2, 1}), UserError);
}

TEST(MeshShape, CoordinatesAndRanksAreInverse) {
  for (const MeshShape shape : {MeshShape{1, 1, 1}, MeshShape{4, 1, 3}, MeshShape{2, 5, 7}}) {
    for (int rank = 0; rank < shape.size(); ++rank) EXPECT_EQ(shape.rank_of(shape.coordinates(rank)), rank);
  }
}

std::string message(int64_t tp, int64_t sp, int64_t dp, int ranks) {
  try {
    mesh_shape(tp, sp, dp, ranks);
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

TEST(MeshShape, ReportsWhichNumbersDoNotFit) {
  EXPECT_EQ(message(2, 4, 3, 24), "");
  EXPECT_EQ(message(2, 4, 0, 24), "");
  EXPECT_EQ(message(2, 4, 3, 8),
            "parallel: tp * sp * dp = 2 * 4 * 3, but the job has 8 ranks; set parallel.dp = 1, or 0 for all remaining "
            "ranks");
  EXPECT_EQ(message(2, 3, 0, 8),
            "parallel: 8 ranks is not divisible by tp * sp = 2 * 3; start a multiple of it, or change parallel.tp or "
            "parallel.sp");
  for (auto [tp, sp, dp] : {std::array<int64_t, 3>{0, 1, 1}, {1, -1, 1}, {1, 1, -8}}) {
    EXPECT_NE(message(tp, sp, dp, 8).find("at least 1"), std::string::npos);
  }
  EXPECT_NE(message(int64_t{1} << 33, int64_t{1} << 33, 1, 8), "");
}

}  // namespace
}  // namespace tmamba
