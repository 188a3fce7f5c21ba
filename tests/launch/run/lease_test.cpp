// The lease of a run directory, held by this process, by children that die, stop or wake up, and by other machines.
#include "launch/run/lease.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <functional>
#include <thread>

#include "dist/world/world.h"
#include "kernels/base/clock.h"
#include "launch/cli/exit_code.h"
#include "tests/launch/program.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;

constexpr LeaseTimes kQuick{.beat = 0.1, .stale = 1, .look = 0.05};
constexpr LeaseTimes kNeverStale{.beat = 0.1, .stale = 1e6, .look = 0.05};

class RunLease : public testing::Test {
 protected:
  void SetUp() override { enter_test_folder("lease"); }
  void TearDown() override {
    for (const pid_t child : children_) {
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    }
    const fs::path folder = fs::current_path();
    fs::current_path("/");
    fs::remove_all(folder);
  }

  // A process that takes the lease and runs `body`; it ends with the body's result.
  pid_t child(const LeaseOptions& options, const std::function<int(Lease&)>& body) {
    const pid_t pid = fork();
    if (pid == 0) {
      int code = 100;
      try {
        Lease lease("run", options);
        code = body(lease);
      } catch (const ExitError& error) {
        code = error.exit_code();
      }
      _exit(code);
    }
    children_.push_back(pid);
    return pid;
  }
  pid_t holder(const LeaseOptions& options = {.take_over = false, .job = "", .times = kQuick}) {
    const pid_t pid = child(options, [](Lease&) {
      std::ofstream("held") << "";
      pause();
      return 0;
    });
    until([] { return fs::exists("held"); });
    return pid;
  }
  static int end_of(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, WUNTRACED);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  static void until(const std::function<bool()>& condition) {
    for (int i = 0; i < 6000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    ASSERT_TRUE(condition());
  }
  // Makes the holder look like a process of another machine.
  static void move_to_another_machine(const std::string& file) {
    std::ifstream in(file);
    nlohmann::json lease = nlohmann::json::parse(in);
    lease["machine"] = "another one";
    lease["host"] = "far-away";
    const auto touched = fs::last_write_time(file);
    std::ofstream("lease.new") << lease.dump();
    fs::last_write_time("lease.new", touched);
    fs::rename("lease.new", file);
  }
  static std::string refusal(const LeaseOptions& options) {
    try {
      const Lease lease("run", options);
      return "";
    } catch (const ExitError& error) {
      EXPECT_EQ(error.exit_code(), kNoProgress);
      return error.what();
    }
  }

  std::vector<pid_t> children_;
};

TEST_F(RunLease, EndsAndIsTakenAgain) {
  EXPECT_EQ(lease_state("run"), LeaseState::none);
  {
    const Lease lease("run", {});
    EXPECT_TRUE(lease.held());
    EXPECT_TRUE(lease.held_now());
    EXPECT_TRUE(is_current(lease.id()));
    EXPECT_EQ(lease_state("run"), LeaseState::alive);
  }
  EXPECT_EQ(lease_state("run"), LeaseState::ended);
  const Lease again("run", {});
  EXPECT_EQ(again.id().number, 2);
  EXPECT_FALSE(fs::exists("run/lease-1.json"));
  for (const auto& entry : fs::directory_iterator("run")) EXPECT_EQ(entry.path().filename(), "lease-2.json");
}

TEST_F(RunLease, IsRefusedWhileItsHolderOnThisMachineLives) {
  const pid_t other = holder({.take_over = false, .job = "77", .times = {}});
  const std::string problem = refusal({.take_over = false, .job = "78", .times = kNeverStale});
  EXPECT_NE(problem.find(str("process ", other, " on ")), std::string::npos) << problem;
  EXPECT_NE(problem.find("(job 77)"), std::string::npos) << problem;
  EXPECT_NE(problem.find("--take-over"), std::string::npos) << problem;
  EXPECT_NE(refusal({.take_over = false, .job = "", .times = kNeverStale}), "");  // no job is not the same job
  EXPECT_EQ(refusal({.take_over = true, .job = "78", .times = kNeverStale}), "");
}

TEST_F(RunLease, PassesAtOnceFromADeadProcessAndWithinAJob) {
  const pid_t dead = holder();
  kill(dead, SIGKILL);
  waitpid(dead, nullptr, 0);
  EXPECT_EQ(lease_state("run"), LeaseState::gone);
  EXPECT_EQ(refusal({.take_over = false, .job = "", .times = kNeverStale}), "");
  fs::remove("held");
  holder({.take_over = false, .job = "77", .times = kQuick});
  EXPECT_EQ(refusal({.take_over = false, .job = "77", .times = kNeverStale}), "");
}

// A number that another process has now is not the holder's.
TEST_F(RunLease, AReusedProcessNumberIsNoHolder) {
  const pid_t dead = holder();
  kill(dead, SIGKILL);
  waitpid(dead, nullptr, 0);
  std::ifstream in("run/lease-1.json");
  nlohmann::json lease = nlohmann::json::parse(in);
  lease["pid"] = getpid();
  std::ofstream("run/lease-1.json") << lease.dump();
  EXPECT_EQ(lease_state("run"), LeaseState::gone);
  EXPECT_EQ(refusal({.take_over = false, .job = "", .times = kNeverStale}), "");
}

TEST_F(RunLease, OfAnotherMachineIsAwaited) {
  const pid_t other = holder();
  move_to_another_machine("run/lease-1.json");
  // It beats, so however long it would take to become stale, this is refused.
  const std::string problem = refusal({.take_over = false, .job = "", .times = kNeverStale});
  EXPECT_NE(problem.find(" on far-away"), std::string::npos) << problem;
  kill(other, SIGKILL);
  waitpid(other, nullptr, 0);
  EXPECT_EQ(refusal({.take_over = false, .job = "", .times = kQuick}), "");  // after a second
}

// The age of a heartbeat is a difference of two times of the file server, whatever this machine's clock says.
TEST_F(RunLease, GoesStaleByTheClockOfTheFiles) {
  holder({.take_over = false, .job = "", .times = {.beat = 1e6, .stale = 1, .look = 0.05}});
  move_to_another_machine("run/lease-1.json");
  EXPECT_EQ(lease_state("run"), LeaseState::alive);
  fs::last_write_time("run/lease-1.json", fs::last_write_time("run/lease-1.json") - std::chrono::seconds(29));
  EXPECT_EQ(lease_state("run"), LeaseState::alive);
  fs::last_write_time("run/lease-1.json", fs::last_write_time("run/lease-1.json") - std::chrono::seconds(2));
  EXPECT_EQ(lease_state("run"), LeaseState::gone);
  EXPECT_EQ(refusal({}), "");
}

// A stopped holder becomes stale; when it wakes up, its first look tells it, before it can write.
TEST_F(RunLease, AHolderThatWasStoppedFindsItselfFenced) {
  const pid_t other = child({.take_over = false, .job = "", .times = kQuick}, [](Lease& lease) {
    raise(SIGSTOP);
    return lease.held() || lease.held_now() ? 1 : 42;
  });
  int status = 0;
  ASSERT_EQ(waitpid(other, &status, WUNTRACED), other);
  ASSERT_TRUE(WIFSTOPPED(status));
  EXPECT_EQ(refusal({.take_over = false, .job = "", .times = kQuick}), "");
  kill(other, SIGCONT);
  EXPECT_EQ(end_of(other), 42);
  EXPECT_EQ(lease_state("run"), LeaseState::ended);  // what the later holder wrote
}

TEST_F(RunLease, ARunningHolderNoticesWithinALook) {
  const Lease first("run", {.take_over = false, .job = "", .times = kQuick});
  const Lease second("run", {.take_over = true, .job = "", .times = kQuick});
  until([&] { return !first.held(); });
  EXPECT_TRUE(second.held_now());
  EXPECT_FALSE(is_current(first.id()));
  EXPECT_THROW(first.require_held(), Error);
  EXPECT_NE(first.problem().find("another attempt of this run has taken over its run directory: process "),
            std::string::npos);
}

// Of many that want a dead holder's lease, one gets it.
TEST_F(RunLease, OneOfManyTakesOver) {
  const pid_t dead = holder();
  kill(dead, SIGKILL);
  waitpid(dead, nullptr, 0);
  std::vector<pid_t> all;
  for (int i = 0; i < 8; ++i) {
    all.push_back(child({.take_over = false, .job = "", .times = kNeverStale}, [](Lease& lease) {
      while (!fs::exists("over")) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      return lease.held_now() ? 0 : 1;
    }));
  }
  // All but one are refused.
  int refused = 0;
  for (int i = 0; i < 7; ++i) {
    int status = 0;
    const pid_t ended = waitpid(-1, &status, 0);
    ASSERT_NE(std::find(all.begin(), all.end(), ended), all.end());
    std::erase(all, ended);
    refused += WIFEXITED(status) && WEXITSTATUS(status) == kNoProgress;
  }
  EXPECT_EQ(refused, 7);
  std::ofstream("over") << "";
  EXPECT_EQ(end_of(all.front()), 0);
}

TEST_F(RunLease, ARemovedFileIsRecreatedButNotBesideAnother) {
  const Lease lease("run", {.take_over = false, .job = "", .times = kQuick});
  fs::remove("run/lease-1.json");
  until([] { return fs::exists("run/lease-1.json"); });
  EXPECT_TRUE(lease.held_now());
  fs::rename("run", "away");
  EXPECT_TRUE(lease.held_now());  // nobody else has it
  EXPECT_FALSE(fs::exists("run"));
  // Another attempt creates the directory. Which of the two creates its file first is open, but only one has it.
  const bool refused = !refusal({.take_over = false, .job = "", .times = kQuick}).empty();
  EXPECT_EQ(lease.held_now(), refused);
}

// A lease file that is empty, because its holder is creating it or a crash cut it off, is honoured until it is stale.
TEST_F(RunLease, ADamagedFileIsAwaited) {
  fs::create_directories("run");
  std::ofstream("run/lease-3.json") << "";
  const auto begin = std::chrono::steady_clock::now();
  const Lease lease("run", {.take_over = false, .job = "", .times = kQuick});
  EXPECT_GE(seconds_since(begin), 0.5);
  EXPECT_EQ(lease.id().number, 4);
}

}  // namespace
}  // namespace tmamba
