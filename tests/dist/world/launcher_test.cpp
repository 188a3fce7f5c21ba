// Checks of SLURM's variables against MPI.
#include "dist/world/launcher.h"

#include <gtest/gtest.h>

#include <map>

namespace tmamba {
namespace {

using Variables = std::map<std::string, std::string>;

Environment of(const Variables& variables) {
  return [&variables](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
}

const Variables kSrun{{"SLURM_STEP_NUM_TASKS", "8"}, {"SLURM_PROCID", "5"}, {"SLURM_LOCALID", "1"}, {"PMIX_RANK", "5"}};
constexpr Place kPlace{.rank = 5, .size = 8, .local_rank = 1};

Variables with(Variables variables, const std::string& name, const std::string& value) {
  variables[name] = value;
  return variables;
}

TEST(Launcher, AgreesWhereAllAgree) {
  EXPECT_EQ(launcher_disagreement(of(kSrun), kPlace), "");
  EXPECT_EQ(launcher_disagreement(of({}), kPlace), "");
}

TEST(Launcher, NamesWhatDiffers) {
  for (const std::string name : {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"}) {
    const Variables variables = with(kSrun, name, "3");
    const std::string problem = launcher_disagreement(of(variables), kPlace);
    EXPECT_NE(problem.find("rank 5: MPI reports "), std::string::npos) << problem;
    EXPECT_NE(problem.find(name + "=3"), std::string::npos) << problem;
  }
}

// SLURM's tasks are mpirun's daemons then, one a node.
TEST(Launcher, MpirunInAJobIsNotCompared) {
  for (const std::string name : {"OMPI_COMM_WORLD_RANK", "HYDI_CONTROL_FD"}) {
    const Variables variables = with(with(kSrun, name, "0"), "SLURM_PROCID", "0");
    EXPECT_EQ(launcher_disagreement(of(variables), kPlace), "");
    EXPECT_EQ(missing_pmi(of(variables)), "");
  }
}

// A batch script's own environment, which has its number of tasks, and a place among them.
TEST(Launcher, OneProcessInAJobOfSeveralTasksIsRefused) {
  const Variables batch{{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}};
  const std::string warning = alone_in_job(of(batch));
  EXPECT_NE(warning.find("SLURM job 7 has 8 tasks"), std::string::npos) << warning;
  EXPECT_NE(warning.find("srun --mpi=pmix or mpirun"), std::string::npos) << warning;
  EXPECT_EQ(alone_in_job(of({})), "");
  EXPECT_EQ(alone_in_job(of(with(batch, "SLURM_NTASKS", "1"))), "");
  for (const std::string name : {"SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"})
    EXPECT_EQ(alone_in_job(of(with(batch, name, "1"))), "") << name;
}

TEST(Launcher, TasksWithoutPmiAreFoundBeforeMpiStarts) {
  Variables variables = kSrun;
  EXPECT_EQ(missing_pmi(of(variables)), "");
  variables.erase("PMIX_RANK");
  EXPECT_NE(missing_pmi(of(variables)), "");
  EXPECT_EQ(missing_pmi(of(with(variables, "SLURM_MPI_TYPE", "cray_shasta"))), "");
  EXPECT_NE(missing_pmi(of(with(variables, "SLURM_MPI_TYPE", "none"))), "");
  EXPECT_EQ(missing_pmi(of(with(variables, "SLURM_STEP_NUM_TASKS", "1"))), "");
  EXPECT_EQ(missing_pmi(of({})), "");
}

}  // namespace
}  // namespace tmamba
