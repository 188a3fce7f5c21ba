#include "launch/train/save_controller.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/checkpoint/slice_relay.h"
#include "dist/comm/collective_guard.h"
#include "kernels/base/clock.h"
#include "launch/cli/format.h"

namespace tmamba {

namespace fs = std::filesystem;

void SaveController::Retry::failed() {
  delay_seconds_ = std::clamp(2 * delay_seconds_, 1.0, 600.0);
  failed_at_ = std::chrono::steady_clock::now();
}

bool SaveController::Retry::too_soon() const {
  return delay_seconds_ > 0 && seconds_since(failed_at_) < delay_seconds_;
}

SaveController::SaveController(const RunResources& resources, RunAttempt& attempt, TrainingStep& step)
    : resources_(resources),
      attempt_(attempt),
      step_(step),
      switch_(resources.config.run.dir, "SAVE"),
      interval_(resources.config.checkpoint.mtbf_hours) {}

void SaveController::prepare() {
  const CheckpointConfig& config = resources_.config.checkpoint;
  World& world = resources_.world;
  const fs::path checkpoints = attempt_.directory().checkpoints();
  if (config.writers == Writers::node && world.size() > 1) {
    host_ = std::make_unique<HostGroup>(world.comm(), world.host_leader(), SliceRelay::kBytesPerRank);
  }
  saver_ = std::make_unique<Saver>(world.comm(), checkpoints,
                                   SaveOptions{.keep = config.keep,
                                               .keep_every = config.keep_every,
                                               .check_slices_first = true,
                                               .host = host_.get(),
                                               .before_publish = [this] { attempt_.require_lease(); }});
  snapshot_ = std::make_unique<Snapshot>(resources_.ops->device());
  owned_slices([&](const Tensor& x) { return snapshot_->copy(x); });  // counts the bytes
  try_checkpoint_space(world.comm(), checkpoints, snapshot_->bytes(), host_.get());
  if (config.async && (config.every.automatic || config.every.steps > 0)) snapshot_->clear();
}

bool SaveController::wants_save() const {
  if (!resources_.is_main() || !saver_ || in_flight()) return false;
  if (switch_.is_set() && !retry_.too_soon()) return true;
  return resources_.config.checkpoint.every.automatic && interval_.due();
}

void SaveController::advance(bool all_ready) {
  if (!all_ready) return;
  if (const auto outcome = saver_->advance()) report(*outcome);
}

// Copies where training continues meanwhile, and where the host cannot read the tensors in place.
std::vector<TensorSlice> SaveController::slices(bool async) {
  const bool copies = async || resources_.ops->device() != Device::cpu;
  if (copies) snapshot_->clear();
  return owned_slices([&](const Tensor& x) { return copies ? snapshot_->copy(x) : x; });
}

std::vector<TensorSlice> SaveController::owned_slices(const std::function<Tensor(const Tensor&)>& to_host) {
  const MeshCoordinates at = resources_.mesh->coordinates();
  const bool owns = step_.reducer().sharding().represents_owned(resources_.shape.zero_rank(at));
  return run_slices(step_.table(), step_.params(), step_.optimizer(), owns, at.tp == 0, to_host);
}

// The first parameter with a value that is not finite, on the lowest rank that has one; empty: there is none. Such
// weights would replace the checkpoint that a run can still return to. Collective.
std::string SaveController::weights_problem() const {
  Ops& ops = *resources_.ops;
  Buffer sum({1}, DType::f64, ops.device());
  const auto finite = [&](std::span<const ConstTensor> tensors) {
    ops.sum_squares({sum.tensor({1}, DType::f64), tensors});
    ops.synchronize();
    double squares = 0;
    copy_blocking(Tensor(&squares, {1}, DType::f64), sum.tensor({1}, DType::f64));
    return std::isfinite(squares);
  };
  const std::vector<Parameter>& parameters = step_.table().all();
  std::vector<ConstTensor> weights;
  for (const Parameter& p : parameters) weights.push_back(step_.table().view(step_.params(), p));
  std::string mine;
  for (size_t i = 0; i < weights.size() && mine.empty() && (i > 0 || !finite(weights)); ++i) {
    if (!finite({&weights[i], 1})) mine = parameters[i].name;
  }
  double bad = mine.empty() ? 0 : 1;
  resources_.world.comm().all_reduce(Tensor(&bad, {1}, DType::f64), ReduceOp::sum).wait();
  if (bad == 0) return "";
  const std::vector<std::string> names = CollectiveGuard(resources_.world.comm()).gather(mine);
  const auto first = std::find_if(names.begin(), names.end(), [](const std::string& name) { return !name.empty(); });
  return str("the weights are not finite: ", *first, " on rank ", first - names.begin(), " is the first");
}

void SaveController::save(bool async) {
  attempt_.leave_if_fenced();
  attempt_.keep_directory();
  finish();
  RunState& state = attempt_.state();
  const bool requested = resources_.is_main() && switch_.is_set();
  if (attempt_.latest().step == state.step) {
    if (requested) switch_.clear();
    return;
  }
  if (!saver_) prepare();
  answers_switch_ = requested;
  if (const std::string problem = weights_problem(); !problem.empty()) {
    return report_failure({.step = state.step, .problem = problem, .report = {}, .stall_seconds = 0});
  }
  auto outcome = saver_->start(
      state.step, [&] { return slices(async); }, state_json(state));
  if (!outcome && !async) outcome = saver_->finish();
  if (outcome) report(*outcome);
}

void SaveController::save_now() {
  LatestCheckpoint& latest = attempt_.latest();
  // The latest checkpoint may have been removed with the run directory.
  std::error_code ignored;
  const bool gone = resources_.is_main() && !fs::exists(fs::path(latest.path) / "manifest.json", ignored);
  if (!broadcast_text(resources_.world.comm(), gone ? "gone" : "").empty()) latest.step = -1;
  save(false);
  const int64_t step = attempt_.state().step;
  if (latest.step == step) return;
  throw Error(str("step ", step, " could not be saved: ", problem_, ". The latest checkpoint is ",
                  latest.path.empty() ? "none" : latest.path));
}

void SaveController::finish() {
  if (in_flight()) report(saver_->finish());
}

void SaveController::report(const SaveOutcome& outcome) {
  interval_.saved(outcome.stall_seconds);
  if (!outcome.problem.empty()) return report_failure(outcome);
  retry_.succeeded();
  if (answers_switch_) switch_.clear();
  const SaveReport& saved = outcome.report;
  attempt_.latest() = {.step = outcome.step, .path = saved.path.string()};
  nlohmann::json event = {
      {"step", outcome.step},     {"path", saved.path.string()},       {"bytes", saved.bytes},
      {"seconds", saved.seconds}, {"whole_at", attempt_.state().step}, {"stall_seconds", outcome.stall_seconds}};
  if (resources_.config.checkpoint.every.automatic) event["next_in_seconds"] = interval_.seconds().value_or(0);
  if (!saved.warnings.empty()) event["warnings"] = saved.warnings;
  attempt_.event("checkpoint", event);
  if (!resources_.is_main()) return;
  for (const std::string& warning : saved.warnings) std::fprintf(stderr, "%s\n", warning.c_str());
  message_line(str("step ", outcome.step, ": checkpoint ", saved.path.string(), " (", bytes_text(saved.bytes), ", ",
                   fixed(saved.seconds, 2), " s, training waited ", fixed(outcome.stall_seconds * 1e3, 1), " ms)"));
}

void SaveController::report_failure(const SaveOutcome& outcome) {
  problem_ = outcome.problem;
  retry_.failed();
  attempt_.event("checkpoint_failed", {{"step", outcome.step}, {"problem", outcome.problem}});
  if (resources_.is_main()) {
    std::fprintf(stderr, "step %lld: checkpoint at step %lld failed: %s\n",
                 static_cast<long long>(attempt_.state().step), static_cast<long long>(outcome.step),
                 outcome.problem.c_str());
  }
  attempt_.leave_if_fenced();
}

}  // namespace tmamba
