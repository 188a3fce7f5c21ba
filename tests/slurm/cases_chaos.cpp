// One fault after the other, drawn by a seed, at any step: the weights at the end are those of the quiet run.
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

// Makes one fault and waits until it can be followed by another.
class Chaos {
 public:
  Chaos(Case& c, std::string job, std::mt19937& random) : c_(c), job_(std::move(job)), random_(random) {}

  void make(Fault fault) {
    const std::vector<int> ranks = c_.ranks_of(job_);
    if (ranks.empty()) throw std::runtime_error("no rank is there to go wrong");
    const int victim = ranks[random_() % ranks.size()];
    c_.fault();
    switch (fault) {
      case Fault::kill:
        kill(victim, SIGKILL);
        return went_on();
      case Fault::freeze:
        kill(victim, SIGSTOP);
        return went_on();
      case Fault::slow:
        return slow(victim);
      case Fault::nan:
        return one_nan(environment_of(victim, "PMIX_RANK"));
      case Fault::full_disk:
        return full_disk();
      case Fault::preempt:
        c_.slurm("sbatch --partition=high --constraint=chaos --nodes=1 --exclusive --output=/dev/null --wrap=true");
        return went_on();
    }
  }

 private:
  void went_on() { c_.seconds_to_new_step(); }

  void slow(int victim) {
    for (int i = 0; i < 8; ++i) {
      kill(victim, SIGSTOP);
      nap(100);
      kill(victim, SIGCONT);
      nap(20);
    }
  }

  void wait_for_event(const std::string& kind, size_t before) {
    for (int i = 0; i < 3000 && c_.events(kind).size() == before; ++i) nap(10);
    c_.expect(c_.events(kind).size() > before, "no event " + kind);
  }

  void one_nan(const std::string& rank) {
    const size_t before = c_.events("computed_again").size();
    std::ofstream(c_.folder() / ("nan-" + rank)).close();
    wait_for_event("computed_again", before);
  }

  void full_disk() {
    const size_t before = c_.events("checkpoint_failed").size();
    std::ofstream(c_.folder() / "full-disk").close();
    wait_for_event("checkpoint_failed", before);
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
  c.site("SITE_CONSTRAINT=chaos\nSITE_TIME=10\nSITE_SETUP='export LD_PRELOAD=" + std::string(SLURM_FAULTS) +
         " FAULTS=" + c.folder().string() + "'");
  const auto begin = std::chrono::steady_clock::now();
  const std::string job = c.submit("--set run.hang_timeout=3 --set checkpoint.keep=3");
  Chaos faulty(c, job, random);
  std::string story;
  // Every kind in turn, in an order of the seed.
  std::vector<Fault> kinds;
  for (int i = 0; i < faults; ++i) {
    if (kinds.empty()) {
      kinds = {Fault::kill, Fault::freeze, Fault::slow, Fault::nan, Fault::full_disk, Fault::preempt};
      std::shuffle(kinds.begin(), kinds.end(), random);
    }
    const int64_t step = c.last_logged_step() + 25 + static_cast<int64_t>(random() % 40);
    c.reach(std::min(step, c.steps() - 60), 120);
    story += " " + std::to_string(c.last_logged_step()) + ":" + name_of(kinds.back());
    faulty.make(kinds.back());
    kinds.pop_back();
  }
  c.ends(job, "COMPLETED", 300);
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
