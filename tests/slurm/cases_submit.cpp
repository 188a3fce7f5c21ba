// `transmamba submit` beside a real SLURM: what it takes, what it refuses, names as wild as users choose them.
#include <filesystem>
#include <fstream>

#include "tests/slurm/case.h"
#include "tests/source_dir.h"

namespace tmamba {

namespace {

namespace fs = std::filesystem;

void refused(Case& c, const std::string& options, int nodes, const std::vector<std::string>& says) {
  const Outcome outcome = c.try_submit(options, nodes);
  c.equal(outcome.code, 2, "exit code");
  for (const std::string& part : says) c.contains(outcome.output, part);
  c.expect(!fs::exists(c.run_dir()), "a refused job leaves a run directory");
}

void unknown_partition(Case& c) {
  c.site("SITE_PARTITION=gpu-large");
  refused(c, "", 2, {"unknown partition gpu-large (SITE_PARTITION); valid: high low"});
}

void too_many_nodes(Case& c) {
  // The nodes of both partitions are the same.
  refused(c, "--set train.global_batch=14", 14, {"--nodes 14: partition low has 13 nodes"});
  c.site("SITE_PARTITION=high");
  refused(c, "--set train.global_batch=64", 64, {"--nodes 64: partition high has 13 nodes"});
}

void too_long(Case& c) { refused(c, "--time 99:00:00", 2, {"99:00:00: partition low ends jobs after 10:00"}); }

void layout_that_does_not_fit(Case& c) {
  refused(c, "--set parallel.sp=4", 2, {"2 ranks is not divisible by tp * sp = 1 * 4"});
  refused(c, "--set train.global_batch=7", 2, {"train.global_batch"});
  refused(c, "--set run.device=cuda", 2, {"SITE_GPUS_PER_NODE"});
  refused(c, "--set data.train=nowhere.h5", 2, {"nowhere.h5: no such file; create it with `transmamba prepare`"});
}

// SLURM itself says no.
void refused_by_slurm(Case& c) {
  c.site("SITE_CONSTRAINT=no-such-feature");
  refused(c, "", 2, {"SLURM would refuse this job", "Invalid feature"});
}

void no_slurm_answers(Case& c) {
  // Without the file, SLURM's commands look for it for a minute.
  std::ofstream(c.folder() / "slurm.conf") << "# no cluster\n";
  const Outcome outcome =
      c.cluster().run(c.folder(), "SLURM_CONF=slurm.conf " + command_line("submit run.toml --nodes 2", 0));
  c.equal(outcome.code, 2, "exit code");
  c.contains(outcome.output, "--dry-run prints the job script");
}

// The folder's name has everything that a shell or SLURM could take for something else.
void wild_names(Case& c) {
  c.name_run("run 1; 'two' \"$(touch pwned)\" `touch pwned` & %j #x");
  const std::string job = c.submit("--set 'run.dir=run 1; '\\''two'\\'' \"$(touch pwned)\" `touch pwned` & %j #x'");
  c.ends(job);
  c.expect(!c.job_log().empty(), "the log is not in the run directory");
  int entries = 0;
  for (const auto& entry : fs::directory_iterator(c.folder())) {
    ++entries;
    c.expect(entry.path().filename() != "pwned", "a part of the name was run");
  }
  c.equal(entries, 3, "entries of the folder");  // run.toml, site.env and the run
  c.same_as_quiet(2);
}

// The job scripts of cluster/ as they are, where submit cannot run.
void script_by_hand(Case& c) {
  const std::string program = command_line("", 0), cluster = std::string(TMAMBA_SOURCE_DIR) + "/cluster";
  std::ofstream(c.folder() / "hand.env") << "SITE_CONSTRAINT=common\nSITE_TIME=10\nSITE_RANKS_PER_NODE=1\n"
                                         << "SITE_SETUP='export LD_PRELOAD=" TMAMBA_FAULTS " FAULTS="
                                         << c.folder().string() << "'\n"
                                         << "SITE_PROGRAM=" << program << "\n";
  c.hold(Case::kFault);
  const Outcome outcome = c.cluster().run(
      c.folder(), "export TRANSMAMBA_SOURCE='" TMAMBA_SOURCE_DIR "' && sbatch --parsable $('" + cluster +
                      "/options.sh' hand.env) --nodes 2 '" + cluster + "/many-nodes.sbatch' hand.env run.toml run");
  c.equal(outcome.code, 0, outcome.output);
  const std::string job = outcome.output.substr(0, outcome.output.find('\n'));
  c.freeze(job);
  c.slurm("scontrol requeue " + job);
  c.equal(c.ends(job).at("Restarts"), "1", "restarts");
  c.no_step_lost(1);
  c.same_as_quiet(2);
}

}  // namespace

std::vector<CaseEntry> submit_cases() {
  return {{"ScriptByHand", script_by_hand},
          {"UnknownPartition", unknown_partition},
          {"TooManyNodes", too_many_nodes},
          {"TooLong", too_long},
          {"LayoutThatDoesNotFit", layout_that_does_not_fit},
          {"RefusedBySlurm", refused_by_slurm},
          {"NoSlurmAnswers", no_slurm_answers},
          {"WildNames", wild_names}};
}

}  // namespace tmamba
