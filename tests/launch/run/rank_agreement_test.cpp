// What ranks compare before a run, on 1 to 4 ranks.
#include "launch/run/rank_agreement.h"

#include <gtest/gtest.h>

#include "dist/world/world.h"
#include "tests/dist/comm/mpi_main.h"

namespace tmamba {
namespace {

// The message on this rank; empty if the ranks agree.
std::string problem(const std::function<void(RankFacts&)>& read, bool* is_user_error = nullptr) {
  try {
    require_agreement(test_world().comm(), read);
    return "";
  } catch (const UserError& error) {
    if (is_user_error != nullptr) *is_user_error = true;
    return error.what();
  } catch (const Error& error) {
    if (is_user_error != nullptr) *is_user_error = false;
    return error.what();
  }
}

TEST(RankAgreement, TheSameFactsAgree) {
  EXPECT_EQ(problem([](RankFacts& facts) {
              facts.must_agree("train.lr", "3e-4");
              facts.may_differ("OMP_NUM_THREADS", std::to_string(test_world().rank()));
              facts.must_agree("content", "the same", str("path of rank ", test_world().rank()));
            }),
            "");
}

TEST(RankAgreement, EveryDifferenceIsNamedWithItsRanks) {
  const int rank = test_world().rank(), size = test_world().size();
  const std::string text = problem([&](RankFacts& facts) {
    facts.must_agree("a", "1");
    facts.must_agree("b", rank == size - 1 ? "3" : "2", rank == size - 1 ? "three" : "");
    if (rank == 0) facts.must_agree("c", "x");
  });
  if (size == 1) {
    EXPECT_EQ(text, "");
    return;
  }
  const std::string first = size == 2 ? "rank 0" : str("ranks 0-", size - 2);
  EXPECT_NE(text.find(str("\n  b: 2 on ", first, "; three on rank ", size - 1)), std::string::npos) << text;
  EXPECT_NE(text.find("\n  c: x on rank 0; not set on the others"), std::string::npos) << text;
  EXPECT_EQ(text.find("\n  a:"), std::string::npos) << text;
}

TEST(RankAgreement, ARankThatCannotReadFailsAllAlike) {
  const int last = test_world().size() - 1;
  bool user_error = false;
  const std::string text = problem(
      [&](RankFacts& facts) {
        if (test_world().rank() == last) throw UserError("run.toml: no such file");
        facts.must_agree("a", "1");
      },
      &user_error);
  EXPECT_TRUE(user_error);
  EXPECT_EQ(text, last == 0 ? "run.toml: no such file" : str("rank ", last, ": run.toml: no such file"));
  EXPECT_EQ(problem([](RankFacts&) { throw UserError("the same everywhere"); }), "the same everywhere");
  EXPECT_NE(problem([](RankFacts&) { throw Error("disk"); }, &user_error), "");
  EXPECT_FALSE(user_error);
}

TEST(RankAgreement, VariablesThatChangeNumbersAreCompared) {
  for (const char* name :
       {"NCCL_ALGO", "NCCL_MIN_NCHANNELS", "NCCL_MAX_CTAS", "OMPI_MCA_coll_tuned_allreduce_algorithm",
        "MPICH_ALLREDUCE_ALGORITHM", "OPENBLAS_CORETYPE", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE",
        "OMP_DYNAMIC", "I_MPI_ADJUST_ALLREDUCE"}) {
    EXPECT_EQ(use_of_variable(name), VariableUse::compared) << name;
  }
  for (const char* name : {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}) {
    EXPECT_EQ(use_of_variable(name), VariableUse::reported) << name;
  }
  for (const char* name : {"PATH", "NCCL_DEBUG", "CUDA_VISIBLE_DEVICES", "NCCL_ALGORITHM", "OMPI_COMM_WORLD_RANK"}) {
    EXPECT_EQ(use_of_variable(name), VariableUse::ignored) << name;
  }
}

TEST(RankAgreement, DataIsComparedByContent) {
  TokenFileInfo info;
  info.path = str("/node", test_world().rank(), "/train.h5");
  info.source_hash = "12ab";
  EXPECT_EQ(problem([&](RankFacts& facts) { facts.add("data.train", info); }), "");
  info.source_hash = str("12a", test_world().rank());
  const std::string text = problem([&](RankFacts& facts) { facts.add("data.train", info); });
  EXPECT_EQ(text.find("content of data.train: /node0/train.h5 (") != std::string::npos, test_world().size() > 1)
      << text;
}

}  // namespace
}  // namespace tmamba
