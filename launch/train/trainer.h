// The training loop: the whole path of a batch, from the loader to the checkpoint.
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "data/tokens/loader.h"
#include "data/tokens/tokenizer.h"
#include "dist/world/mesh.h"
#include "dist/world/world.h"
#include "dist/zero/grad_reducer.h"
#include "kernels/base/clock.h"
#include "kernels/ops/timed_ops.h"
#include "launch/cli/exit_code.h"
#include "launch/config/config.h"
#include "launch/eval/evaluator.h"
#include "launch/plan/run_plan.h"
#include "launch/run/run_directory.h"
#include "launch/state/run_progress.h"
#include "launch/state/run_state.h"
#include "launch/state/save_interval.h"
#include "launch/state/saver.h"
#include "launch/state/snapshot.h"
#include "launch/train/comm_profile.h"
#include "launch/train/spike_guard.h"
#include "launch/train/training_step.h"

namespace tmamba {

struct StepResult {
  double loss = 0;       // nats per token, over the global batch
  double grad_norm = 0;  // before clipping
  double lr = 0;
  bool skipped = false;  // loss or gradient was not finite, or leapt: nothing was updated
  bool spike = false;    // it leapt
  // What the ranks agree on for this boundary.
  bool time_up = false, stop = false, save = false;
  bool saved_part = false;  // all ranks are through with the present part of the save in flight
  StepTimes times;
};

class Trainer {
 public:
  // Reads data and tokenizer, plans and allocates memory, resumes from the newest whole checkpoint of the run folder.
  // Mistakes in configuration and data are thrown as UserError before anything is allocated.
  Trainer(RunConfig config, World& world);

  // Checks all of that which needs no allocation, and throws the same. Collective.
  static void check(RunConfig config, World& world) { Trainer(std::move(config), world, Checks{}); }

  // Finds a rank that hangs from now on, names it and ends the job (run.hang_timeout). Once per process.
  void start_watchdog();

  // Trains to the end, to a signal or to the switch file STOP in the run folder. Returns the exit code.
  int run();

  // One optimizer step (from 1) over the global batch.
  StepResult train_step(int64_t step);

  // What came of the run, from its summary file: a table beside other methods ("NAME=BITS"), or JSON.
  void print_summary(const std::vector<std::string>& compare, bool as_json) const;

  // The flat parameters of this rank.
  const Tensor& params() const { return step_->params(); }
  const RunState& state() const { return state_; }
  const RunConfig& config() const { return config_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Checks {};
  Trainer(RunConfig config, World& world, Checks);

  int train();
  void open_data();
  void make_step();

  std::optional<CheckpointReader> find_newest();
  void require_same_model(const CheckpointReader& newest) const;
  void load(const CheckpointReader& checkpoint);
  void resume_or_initialize(const std::optional<CheckpointReader>& newest);
  void say_what_changed(const std::string& config_before);
  void prepare_saving();
  std::optional<CheckpointReader> begin_start();
  void require_nothing_lost();
  void count_start(int64_t step);
  void log_early(const std::string& kind, nlohmann::json details) const;
  void log_failure(const std::string& problem) noexcept;
  bool due(int64_t every) const { return every > 0 && state_.step % every == 0; }
  void log_metric(nlohmann::json line);
  void log_end(const std::string& kind, nlohmann::json details);
  void add_stall(nlohmann::json& line);
  void log_step(const StepResult& result, double step_seconds);
  void log_memory();
  void print_header() const;
  void start_profile();
  void add_profile(nlohmann::json& summary) const;
  void evaluate_and_log(bool full);
  void write_sample();
  std::vector<TensorSlice> slices_to_save(bool behind);
  std::vector<TensorSlice> own_slices(const std::function<Tensor(const Tensor&)>& host);
  void save(bool behind);
  void save_now();
  void report_save(const SaveOutcome& outcome);
  void leave_if_taken_over();
  void keep_folder();
  StepResult next_step();
  void finish_step(const StepResult& result, double step_seconds);
  void go_back();
  void finish();
  StepLimits limits() const;
  int stop_reason() const;
  bool wants_save() const;
  int stop_and_requeue();
  void switch_off_stop() const;
  LearningRate lr_schedule() const;
  double elapsed() const { return seconds_since(started_); }

  RunConfig config_;
  World& world_;
  const MeshShape shape_;
  std::unique_ptr<Mesh> mesh_;
  bool main_;  // rank 0: prints and writes logs
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<TimedOps> timed_ops_;  // steps run on these where run.profile = "ops"
  std::unique_ptr<CommProfile> comm_profile_;
  int64_t profiled_from_ = 0;  // the step before the first of this process
  std::unique_ptr<TokenFile> train_file_, valid_file_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<int64_t> transpoints_;
  RunPlan plan_;
  int64_t micro_batch_ = 1;  // sequences of one forward and backward
  int64_t micro_batches_ = 1;
  int64_t total_steps_ = 0;
  std::unique_ptr<Communicator> all_;  // all ranks, tensors of the device
  std::unique_ptr<TrainingStep> step_;
  std::unique_ptr<Loader> loader_;
  std::unique_ptr<RunDirectory> folder_;
  RunState state_;
  std::unique_ptr<RunProgress> progress_;
  std::unique_ptr<HostGroup> host_;     // checkpoint.writers = "node": the ranks that one rank writes for
  std::unique_ptr<Snapshot> snapshot_;  // outlives the thread that reads it
  std::unique_ptr<Saver> saver_;
  SaveInterval save_interval_;
  double logged_stall_seconds_ = 0;
  int64_t last_saved_ = -1;
  std::string last_checkpoint_, save_problem_;
  bool save_was_asked_for_ = false;  // by the switch file: the save in flight answers it
  double retry_seconds_ = 0;         // after a failed save, before the switch file asks again
  Clock::time_point failed_at_;
  SpikeGuard guard_;
  int skips_in_a_row_ = 0;
  int64_t steps_here_ = 0;  // of this process
  size_t free_before_ = 0;  // of the GPU, before anything was allocated
  double last_valid_bits_ = 0;
  double recent_tokens_per_s_ = 0;
  Clock::time_point started_;
};

}  // namespace tmamba
