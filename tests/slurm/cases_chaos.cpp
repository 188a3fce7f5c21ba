// Several faults, drawn by a seed, at random steps: the final weights equal those of the quiet run.
#include <signal.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <iostream>
#include <random>

#include "kernels/base/clock.h"
#include "tests/slurm/case.h"
#include "tests/trials.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;

enum class Fault { kill, freeze, slow, nan, full_disk, preempt };
const char* name_of(Fault fault) {
  return std::array{"kill", "freeze", "slow", "nan", "full disk", "preempt"}[static_cast<size_t>(fault)];
}

void nap(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

// Injects one fault into a frozen job and waits until the next may follow.
class Chaos {
 public:
  Chaos(Case& c, std::string job, std::mt19937& random) : c_(c), job_(std::move(job)), random_(random) {}

  void inject(Fault fault) {
    std::vector<int> ranks = c_.ranks_of(job_);
    if (ranks.empty()) throw std::runtime_error("the job has no rank");
    const int victim = ranks[random_() % ranks.size()];
    c_.fault();
    switch (fault) {
      case Fault::kill:
        kill(victim, SIGKILL);
        c_.thaw(job_);
        return c_.recovers();
      case Fault::freeze:
        for (int rank : ranks) {
          if (rank != victim) kill(rank, SIGCONT);
        }
        return c_.recovers();
      case Fault::slow:
        c_.thaw(job_);
        return slow(victim);
      case Fault::nan:
        return one_nan(environment_of(victim, "PMIX_RANK"));
      case Fault::full_disk:
        return full_disk();
      case Fault::preempt:
        c_.slurm("sbatch --partition=high --constraint=chaos --nodes=1 --exclusive --output=/dev/null --wrap=true");
        return c_.recovers();
    }
  }

 private:
  void slow(int victim) {
    for (int i = 0; i < 8; ++i) {
      kill(victim, SIGSTOP);
      nap(100);
      kill(victim, SIGCONT);
      nap(20);
    }
  }

  void thaw_until_event(const std::string& kind) {
    const size_t before = c_.events(kind).size();
    c_.thaw(job_);
    c_.wait_until("event " + kind, [&] { return c_.events(kind).size() > before; });
  }

  void one_nan(const std::string& rank) {
    std::ofstream(c_.folder() / ("nan-" + rank)).close();
    thaw_until_event("computed_again");
  }

  void full_disk() {
    std::ofstream(c_.folder() / "full-disk").close();
    thaw_until_event("checkpoint_failed");
    fs::remove(c_.folder() / "full-disk");
  }

  Case& c_;
  std::string job_;
  std::mt19937& random_;
};

void chaos(Case& c) {
  const int faults = static_cast<int>(trials(4));
  const uint64_t seed = trial_seed(1);
  std::mt19937 random(static_cast<uint32_t>(seed));
  c.set_steps(100 * (faults + 1));
  c.site("SITE_CONSTRAINT=chaos");
  const auto begin = std::chrono::steady_clock::now();
  const auto next_step = [&] {
    return std::min(c.last_logged_step() + 25 + static_cast<int64_t>(random() % 40), c.steps() - 60);
  };
  c.hold(next_step());
  const std::string job = c.submit("--set run.hang_timeout=8 --set checkpoint.keep=3");
  Chaos faulty(c, job, random);
  std::string story;
  // Every kind in turn, in an order of the seed.
  std::vector<Fault> kinds;
  for (int i = 0; i < faults; ++i) {
    if (kinds.empty()) {
      kinds = {Fault::kill, Fault::freeze, Fault::slow, Fault::nan, Fault::full_disk, Fault::preempt};
      std::shuffle(kinds.begin(), kinds.end(), random);
    }
    if (i > 0) c.hold(next_step());
    c.freeze(job);
    story += " " + std::to_string(c.last_logged_step()) + ":" + name_of(kinds.back());
    faulty.inject(kinds.back());
    kinds.pop_back();
  }
  c.ends(job);
  const double seconds = seconds_since(begin);
  c.note("seed " + std::to_string(seed) + ", faults by step:" + story + "; " +
         std::to_string(static_cast<int>(seconds)) + " s, " + std::to_string(c.events("resume").size()) +
         " resumptions");
  c.same_as_quiet(2);
  char last[32];
  std::snprintf(last, sizeof last, "/checkpoints/step-%08lld", static_cast<long long>(c.steps()));
  const Outcome difference =
      transmamba("checkpoint diff '" + c.run_dir().string() + last + "' '" + c.quiet_run(2).string() + last + "'");
  c.contains(difference.output, "\n0 tensors differ");  // of parameters and of both moments
}

}  // namespace

std::vector<CaseEntry> chaos_cases() { return {{"Chaos", chaos}}; }

}  // namespace tmamba
