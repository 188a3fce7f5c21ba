// transmamba submit: writes the batch script of a run and submits it to SLURM.
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

namespace fs = std::filesystem;

namespace {

// Throws what the job itself would throw hours later if the run directory holds another model's checkpoints. A
// checkpoint that cannot be read is left to the job.
void require_same_model_in_run(const RunConfig& config) {
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

// Checks ranks, batch, data and memory now, so that a mistake does not wait in the queue first.
void require_layout(RunConfig config, const JobSpec& job) {
  validate(config);
  const int64_t ranks = job.nodes * job.ranks_per_node, gpus = job.site.gpus_per_node;
  if (ranks > (1 << 20))
    throw UserError(str(job.nodes, " nodes of ", job.ranks_per_node,
                        " ranks are more than 2^20: use fewer nodes or --ranks-per-node"));
  if (config.run.device == Device::cuda && job.ranks_per_node > gpus) {
    throw UserError(str(job.ranks_per_node, " ranks on a node, but the site's nodes have ", gpus,
                        gpus == 1 ? " GPU" : " GPUs", " (SITE_GPUS_PER_NODE): set --ranks-per-node ",
                        std::max<int64_t>(gpus, 1), gpus == 0 ? " and SITE_GPUS_PER_NODE" : "",
                        ", or set run.device = \"cpu\""));
  }
  const MeshShape mesh =
      mesh_shape(config.parallel.tp, config.parallel.sp, config.parallel.dp, static_cast<int>(ranks));
  const TokenFileInfo data = TokenFile(config.data.train).info();
  for (const ValidationSet& set : validation_sets(config.data)) TokenFile(set.path).info();
  if (config.model.vocab == 0) config.model.vocab = data.vocab_size;
  require_same_model_in_run(config);
  MachineModel machine = machine_of_device(config);
  if (config.run.memory_limit > 0) machine.memory_bytes = config.run.memory_limit * static_cast<double>(1 << 30);
  const RunPlan plan =
      config.run.plan.empty() ? choose_plan(config, mesh, machine) : read_plan(config.run.plan, config, mesh);
  if (config.run.device == Device::cpu && config.run.memory_limit == 0) return;  // a node's memory is unknown here
  const RankMemory memory = largest_memory(config, plan);
  if (static_cast<double>(memory.total()) <= machine.memory_bytes) return;
  throw UserError(str("this run does not fit: a rank needs ", bytes_text(memory.total()), " of ",
                      bytes_text(static_cast<int64_t>(machine.memory_bytes)), "; ",
                      memory_advice(config, plan, machine)));
}

JobSpec job_of(const Command& command, const RunConfig& config) {
  JobSpec job;
  job.site = site_of(site_file(command.has("site") ? command.get<std::string>("site") : ""));
  job.nodes = command.get<int64_t>("nodes");
  job.ranks_per_node =
      command.has("ranks-per-node") ? command.get<int64_t>("ranks-per-node") : job.site.default_ranks();
  if (command.has("time")) job.site.time = command.get<std::string>("time");
  if (command.has("array") && command.has("chain"))
    throw UserError("--array and --chain exclude each other: use one of them");
  if (command.has("array")) job.array = command.get<int64_t>("array");
  // The next job or task resumes the run, so this one must not be requeued.
  if (command.has("array") || command.has("chain")) job.site.requeue = "never";
  job.work_dir = fs::current_path().string();
  job.run_dir = fs::absolute(config.run.dir).lexically_normal().string();
  job.file = (fs::path(job.run_dir) / "job.sbatch").string();
  // The canonical path, so that jobs of one directory wait for each other whichever link names it.
  job.name = job_name(fs::weakly_canonical(job.run_dir).string(),
                      command.has("name") ? command.get<std::string>("name") : std::string());
  job.verb = "submit";
  job.program = rank_program(job.site);
  job.arguments = {"train", fs::absolute(command.get<std::string>("config")).lexically_normal().string()};
  for (const std::string& value : command.list("set")) job.arguments.insert(job.arguments.end(), {"--set", value});
  return job;
}

}  // namespace

int submit_verb(const Arguments& arguments) {
  Command command("submit");
  if (!command.parse(arguments)) return kDone;
  const RunConfig config = load_config(command.get<std::string>("config"), command.list("set"));
  const int64_t count = command.has("chain") ? command.get<int64_t>("chain") : 1;
  const JobSpec job = job_of(command, config);
  require_layout(config, job);
  const std::string script = job_script(job);
  const bool dry_run = command.has("dry-run");
  std::vector<std::string> numbers;
  if (!dry_run) {
    require_room(job);
    require_one_name(job);
    numbers = submit_jobs(job.file, script, count);
  }
  if (command.json()) {
    nlohmann::json result{{"jobs", numbers},
                          {"name", job.name},
                          {"nodes", job.nodes},
                          {"ranks", job.nodes * job.ranks_per_node},
                          {"script", job.file}};
    if (dry_run) result["text"] = script;
    std::printf("%s\n", result.dump(2).c_str());
    return kDone;
  }
  if (dry_run) std::printf("%s", script.c_str());
  for (const std::string& number : numbers) {
    std::printf("job %s: %s, %lld x %lld ranks; log: %s/slurm-%s*.log\n", number.c_str(), job.name.c_str(),
                static_cast<long long>(job.nodes), static_cast<long long>(job.ranks_per_node), job.run_dir.c_str(),
                number.c_str());
  }
  return kDone;
}

}  // namespace tmamba
