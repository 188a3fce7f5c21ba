// transmamba submit: writes the batch script of a run and hands it to SLURM.
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/checkpoint/checkpoint.h"
#include "data/tokens/token_file.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/config/config.h"
#include "launch/plan/plan_memory.h"
#include "launch/plan/run_plan.h"
#include "launch/slurm/job_script.h"
#include "launch/slurm/slurm_queue.h"
#include "launch/state/config_change.h"
#include "launch/verbs.h"

namespace tmamba {

namespace po = boost::program_options;
namespace fs = std::filesystem;

namespace {

int64_t positive(const Command& command, const std::string& name) {
  const int64_t value = command.get<int64_t>(name);
  if (value < 1) throw UserError(str("--", name, " ", value, ": at least 1 is expected"));
  return value;
}

// As the job itself would find, hours later. A checkpoint that cannot be read is the job's own to judge.
void require_own_folder(const RunConfig& config) {
  const std::vector<fs::path> checkpoints = list_checkpoints(fs::path(config.run.dir) / "checkpoints");
  if (checkpoints.empty()) return;
  std::optional<RunState> state;
  try {
    state = read_state(CheckpointReader(checkpoints.back()));
  } catch (const Error&) {
    return;
  }
  require_same_model(*state, config);
}

// A run that the ranks, the batch, the data or the memory do not fit is found now, not when the job starts.
void require_layout(RunConfig config, const JobSpec& job) {
  validate(config);
  const int64_t ranks = job.nodes * job.ranks_per_node, gpus = job.site.gpus_per_node;
  if (ranks > (1 << 20)) throw UserError(str(job.nodes, " nodes of ", job.ranks_per_node, " ranks: too many ranks"));
  if (config.run.device == "cuda" && job.ranks_per_node > gpus) {
    throw UserError(str(job.ranks_per_node, " ranks on a node, but the site's nodes have ", gpus,
                        gpus == 1 ? " GPU" : " GPUs", " (SITE_GPUS_PER_NODE): give --ranks-per-node ",
                        std::max<int64_t>(gpus, 1), gpus == 0 ? " and the site's GPUs" : "",
                        ", or set run.device = \"cpu\""));
  }
  const MeshShape mesh =
      mesh_shape(config.parallel.tp, config.parallel.sp, config.parallel.dp, static_cast<int>(ranks));
  const TokenFileInfo data = TokenFile(config.data.train).info();
  if (!config.data.valid.empty()) TokenFile(config.data.valid).info();
  if (config.model.vocab == 0) config.model.vocab = data.vocab_size;
  require_own_folder(config);
  MachineModel machine = machine_of_device(config);
  if (config.run.memory_limit > 0) machine.memory_bytes = config.run.memory_limit * static_cast<double>(1 << 30);
  const RunPlan plan =
      config.run.plan.empty() ? choose_plan(config, mesh, machine) : read_plan(config.run.plan, config, mesh);
  if (config.run.device == "cpu" && config.run.memory_limit == 0) return;  // unknown how much a node's ranks may take
  const RankMemory memory = largest_memory(config, plan);
  if (static_cast<double>(memory.total()) <= machine.memory_bytes) return;
  throw UserError(str("this run does not fit: a rank needs ", bytes_text(memory.total()), ", and may take ",
                      bytes_text(static_cast<int64_t>(machine.memory_bytes)), "; ",
                      memory_advice(config, plan, machine)));
}

JobSpec job_of(const Command& command, const RunConfig& config) {
  JobSpec job;
  job.site = site_of(site_file(command.has("site") ? command.get<std::string>("site") : ""));
  job.nodes = positive(command, "nodes");
  job.ranks_per_node = command.has("ranks-per-node") ? positive(command, "ranks-per-node") : job.site.default_ranks();
  if (command.has("time")) job.site.time = command.get<std::string>("time");
  if (command.has("array") && command.has("chain")) throw UserError("--array and --chain: give one of them");
  if (command.has("array")) job.array = positive(command, "array");
  // Whoever waits behind this job goes on with the run; the job itself must not come back.
  if (command.has("array") || command.has("chain")) job.site.requeue = "never";
  job.work_dir = fs::current_path().string();
  job.run_dir = fs::absolute(config.run.dir).lexically_normal().string();
  job.file = (fs::path(job.run_dir) / "job.sbatch").string();
  // However the folder is named, through links or not, its jobs wait for each other.
  job.name = job_name(fs::weakly_canonical(job.run_dir).string(),
                      command.has("name") ? command.get<std::string>("name") : std::string());
  job.verb = "submit";
  job.program = rank_program(job.site);
  job.arguments = {"train", fs::absolute(command.required("config")).lexically_normal().string()};
  for (const std::string& value : command.list("set")) job.arguments.insert(job.arguments.end(), {"--set", value});
  return job;
}

}  // namespace

int submit_verb(const Arguments& arguments) {
  Command command(
      "submit CONFIG --nodes N [options]",
      "Writes the SLURM job script of a training run (job.sbatch in its folder) and submits it. Before that it checks\n"
      "what can be checked: that layout, batch and memory fit the nodes, that the data are there, that SLURM takes "
      "the\n"
      "job. The job saves before its time is up and is requeued, again and again, until the run is done. What the "
      "site\n"
      "is like stands in one file: see cluster/site.env.");
  command.options()("nodes", po::value<int64_t>(), "nodes of the job")(
      "ranks-per-node", po::value<int64_t>(), "ranks on each; default: SITE_RANKS_PER_NODE, else one for each GPU")(
      "site", po::value<std::string>(), "site file; default: the one that TRANSMAMBA_SITE names")(
      "set", po::value<std::vector<std::string>>(), "override a key: --set train.lr=3e-4 (repeatable)")(
      "name", po::value<std::string>(),
      "name of the job, a mark of its run folder is added; default: that of the folder")(
      "time", po::value<std::string>(), "time limit of a job, as SLURM writes it; default: SITE_TIME")(
      "array", po::value<int64_t>(), "an array of this many tasks, one after the other, in place of requeueing")(
      "chain", po::value<int64_t>(), "this many jobs, each waiting for the one before, in place of requeueing")(
      "dry-run", "print the job script, and do nothing");
  command.positional("config");
  if (!command.parse(arguments)) return kDone;
  const RunConfig config = load_config(command.required("config"), command.list("set"));
  if (!command.has("nodes")) throw UserError("--nodes is missing: how many nodes the job is to have");
  const int64_t count = command.has("chain") ? positive(command, "chain") : 1;
  const JobSpec job = job_of(command, config);
  require_layout(config, job);
  const std::string script = job_script(job);
  if (command.has("dry-run")) {
    std::printf("%s", script.c_str());
    return kDone;
  }
  require_room(job);
  require_one_name(job);
  const std::vector<std::string> numbers = submit_jobs(job.file, script, count);
  if (command.json()) {
    std::printf("%s\n", nlohmann::json({{"jobs", numbers},
                                        {"name", job.name},
                                        {"nodes", job.nodes},
                                        {"ranks", job.nodes * job.ranks_per_node},
                                        {"script", job.file}})
                            .dump(2)
                            .c_str());
    return kDone;
  }
  for (const std::string& number : numbers) {
    std::printf("job %s: %s, %lld x %lld ranks; log: %s/slurm-%s*.log\n", number.c_str(), job.name.c_str(),
                static_cast<long long>(job.nodes), static_cast<long long>(job.ranks_per_node), job.run_dir.c_str(),
                number.c_str());
  }
  return kDone;
}

}  // namespace tmamba
