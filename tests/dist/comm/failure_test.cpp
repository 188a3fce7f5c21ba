// A job fails as a whole: messages, exit code, and no rank is left hanging (a job that does not end by itself is killed
// after two minutes, which changes its exit code). Each test runs failure_child under mpirun.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <string>

namespace tmamba {
namespace {

struct Outcome {
  int exit_code = -1;
  std::string output;

  int count(const std::string& text) const {
    int n = 0;
    for (size_t at = output.find(text); at != std::string::npos; at = output.find(text, at + 1)) ++n;
    return n;
  }
};

Outcome run_command(const std::string& command) {
  Outcome outcome;
  FILE* pipe = popen(("timeout -k 5 120 " + command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return outcome;
  char part[4096];
  while (const size_t n = fread(part, 1, sizeof part, pipe)) outcome.output.append(part, n);
  const int status = pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return outcome;
}

Outcome run_job(int ranks, const std::string& arguments) {
  return run_command("env OMP_NUM_THREADS=1 OMPI_MCA_mpi_yield_when_idle=1 " MPIEXEC
                     " --allow-run-as-root --oversubscribe -n " +
                     std::to_string(ranks) + " " FAILURE_CHILD " " + arguments);
}

#define EXPECT_PRINTED(outcome, text, times) EXPECT_EQ((outcome).count(text), times) << (outcome).output

TEST(Failure, NothingIsPrintedWhereNothingFails) {
  const Outcome outcome = run_job(3, "none");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.output, "");
}

TEST(Failure, ExitCodeOfTheBodyIsThatOfTheJob) { EXPECT_EQ(run_job(2, "return_85").exit_code, 85); }

TEST(Failure, AUserErrorOnAllRanksIsPrintedOnce) {
  const Outcome outcome = run_job(4, "user_error_on_all");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_PRINTED(outcome, "error: config.toml:3: there is no key \"lr_\"\n", 1);
  EXPECT_PRINTED(outcome, "there is no key", 1);
  EXPECT_PRINTED(outcome, "MPI_ABORT", 0);
}

TEST(Failure, AnErrorOnAllRanksIsPrintedOnce) {
  const Outcome outcome = run_job(3, "error_on_all");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_PRINTED(outcome, "the disk is full", 1);
}

TEST(Failure, DifferentErrorsAreAllPrinted) {
  const Outcome outcome = run_job(3, "own_error_on_each");
  EXPECT_EQ(outcome.exit_code, 1);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_PRINTED(outcome, ": part " + std::to_string(rank) + " is damaged", 1);
    EXPECT_PRINTED(outcome, "rank " + std::to_string(rank) + " on ", 1);
  }
}

// One rank throws while the others wait for it.
void expect_last_rank_ends_job(const std::string& how, const std::string& message, int exit_code) {
  const Outcome outcome = run_job(4, how);
  EXPECT_EQ(outcome.exit_code, exit_code) << outcome.output;
  EXPECT_PRINTED(outcome, "rank 3 on ", 1);
  EXPECT_PRINTED(outcome, message, 1);
}

TEST(Failure, OneRankEndsTheJob) { expect_last_rank_ends_job("error_on_last", ": only here", 1); }
TEST(Failure, OneRankEndsTheJobByAUserError) { expect_last_rank_ends_job("user_error_on_last", ": only here", 2); }
TEST(Failure, UnknownExceptionsAreReported) { expect_last_rank_ends_job("unknown_on_last", "unknown type", 1); }
TEST(Failure, WorkInFlightDoesNotHoldUpAnError) { expect_last_rank_ends_job("in_flight_on_last", ": only here", 1); }
TEST(Failure, ThreadsAreReportedToo) { expect_last_rank_ends_job("thread_throws_on_last", ": from a thread", 1); }

TEST(Failure, ARankThatExitsEndsTheJob) {
  const Outcome outcome = run_job(4, "exit_on_last");
  EXPECT_EQ(outcome.exit_code, 7);
}

TEST(Failure, SizesThatDifferAreAnErrorWithTheOperation) {
  const Outcome outcome = run_job(2, "sizes_differ");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_GE(outcome.count("all_reduce #1 on \"world\", rank"), 1) << outcome.output;
  EXPECT_GE(outcome.count("disagree on"), 1) << outcome.output;
}

TEST(Failure, WorksWithoutALauncher) {
  EXPECT_EQ(run_command(FAILURE_CHILD " none").exit_code, 0);
  const Outcome outcome = run_command(FAILURE_CHILD " user_error_on_last");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(outcome.output, "error: only here\n");
}

TEST(Failure, TasksThatDoNotSeeEachOtherAreRefused) {
  const Outcome outcome = run_command("env SLURM_STEP_NUM_TASKS=8 " FAILURE_CHILD " none");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_PRINTED(outcome, "the launcher started 8 tasks", 1);
}

// The watchdog, with a timeout of seconds: long beside the delays of a busy machine. Each job has four ranks.

void expect_hang(const Outcome& outcome) {
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_PRINTED(outcome, "hang: rank ", 1);
}

TEST(Hang, ASlowRankIsNoHang) {
  const Outcome outcome = run_job(4, "hang_not_at_all");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.output, "");
}

TEST(Hang, ARankThatDoesNotArriveIsNamed) {
  const Outcome outcome = run_job(4, "hang_asleep");
  expect_hang(outcome);
  EXPECT_PRINTED(outcome, ": all_reduce #6 (20000 bytes) on \"world\" timed out after", 1);
  EXPECT_PRINTED(outcome, "  rank 2 on ", 1);
  EXPECT_PRINTED(outcome, ": did not arrive: ", 1);
  for (const char* innocent : {"  rank 0", "  rank 1", "  rank 3"}) EXPECT_PRINTED(outcome, innocent, 0);
}

TEST(Hang, AFrozenProcessIsNamed) {
  const Outcome outcome = run_job(4, "hang_stopped");
  expect_hang(outcome);
  EXPECT_PRINTED(outcome, "  rank 2 on ", 1);
  EXPECT_PRINTED(outcome, ": its process has stopped", 1);
}

TEST(Hang, TheCauseIsFoundThroughRanksThatWaitThemselves) {
  const Outcome outcome = run_job(4, "hang_by_chain");
  expect_hang(outcome);
  EXPECT_PRINTED(outcome, "  rank 2 on ", 1);
  for (const char* innocent : {"  rank 0", "  rank 1", "  rank 3"}) EXPECT_PRINTED(outcome, innocent, 0);
}

TEST(Hang, WhatADeviceWaitsForIsNamed) {
  const Outcome outcome = run_job(4, "hang_on_device");
  expect_hang(outcome);
  EXPECT_PRINTED(outcome, ": send_recv #2 (4096 bytes) on \"sp\" timed out after", 1);
  EXPECT_PRINTED(outcome, "  rank 2 on ", 1);
  EXPECT_PRINTED(outcome, ": did not arrive: ", 1);
  EXPECT_PRINTED(outcome, "its last operation there was all_gather #1", 1);
  for (const char* innocent : {"  rank 0", "  rank 1", "  rank 3"}) EXPECT_PRINTED(outcome, innocent, 0);
}

TEST(Hang, DifferentOperationsAreNamed) {
  const Outcome outcome = run_job(4, "hang_other_operation");
  expect_hang(outcome);
  EXPECT_PRINTED(outcome, "broadcast #6 (20000 bytes) on \"world\"", 1);
  // Rank 2 may be the one that reports: it names all three others.
  EXPECT_GE(outcome.count("all_reduce #6 (20000 bytes) on \"world\""), 1) << outcome.output;
  EXPECT_GE(outcome.count("the same operations in the same order"), 1) << outcome.output;
}

TEST(Hang, RanksThatWaitForEachOtherAreListed) {
  const Outcome outcome = run_job(4, "hang_in_a_circle");
  expect_hang(outcome);
  EXPECT_PRINTED(outcome, "the ranks wait for each other", 1);
  for (const char* rank : {"  rank 0", "  rank 1", "  rank 2", "  rank 3"}) EXPECT_PRINTED(outcome, rank, 1);
}

}  // namespace
}  // namespace tmamba
