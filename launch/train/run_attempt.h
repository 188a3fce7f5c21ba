// class RunAttempt: one attempt of a run: its state, its directory and its progress file. It resumes from the latest
// complete checkpoint that earlier attempts left in the run directory.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "launch/run/lease.h"
#include "launch/run/run_directory.h"
#include "launch/state/run_progress.h"
#include "launch/state/run_state.h"
#include "launch/train/run_resources.h"
#include "launch/train/training_step.h"

namespace tmamba {

struct LatestCheckpoint {
  int64_t step = -1;  // -1: there is none
  std::string path;
};

class RunAttempt {
 public:
  // `take_over`: from another attempt that still trains in the run directory, too (class Lease).
  explicit RunAttempt(const RunResources& resources, bool take_over = false)
      : resources_(resources), take_over_(take_over) {}

  // Takes the lease of the run directory, finds the latest complete checkpoint and counts this attempt, before anything
  // is loaded: what makes one attempt fail may make every one fail. Throws UserError where the checkpoint is of another
  // model, Error where there are only damaged ones, ExitError with kNoProgress where another attempt holds the lease
  // and after too many attempts without a newer checkpoint. Collective.
  std::optional<CheckpointReader> begin();
  std::optional<CheckpointReader> find_latest();

  // Reads state, parameters and optimizer.
  void load(const CheckpointReader& checkpoint, TrainingStep& step);
  // The same at the beginning of an attempt: it leaves out the sequences that an earlier one left out. Collective.
  void resume(const CheckpointReader& checkpoint, TrainingStep& step);

  // Opens the logs, and logs that this attempt starts, or resumes and with which changes.
  void open_directory(bool resumed);
  bool has_directory() const { return directory_ != nullptr; }
  // Recreates the run directory if somebody removed or moved it, and training continues; not if another attempt has
  // put its own there.
  void keep_directory();
  // Whether another attempt has taken over the run directory, as far as this rank knows: all ranks must leave.
  bool fenced() const { return lease_ != nullptr && !lease_->held(); }
  // Throws ExitError with kNoProgress on all ranks where another attempt has taken over the run directory. Collective.
  void leave_if_fenced() const;
  // On every rank.
  const LeaseId& lease_id() const { return lease_id_; }
  void require_lease() const { lease_->require_held(); }

  // Appends an event before the logs are open.
  void early_event(const std::string& kind, nlohmann::json details) const;
  void event(const std::string& kind, const nlohmann::json& details) { directory_->event(kind, details); }

  RunState& state() { return state_; }
  const RunState& state() const { return state_; }
  LatestCheckpoint& latest() { return latest_; }
  const LatestCheckpoint& latest() const { return latest_; }
  RunDirectory& directory() { return *directory_; }
  const RunDirectory& directory() const { return *directory_; }
  RunProgress& progress() { return *progress_; }

 private:
  void require_same_model(const CheckpointReader& latest) const;
  void require_nothing_lost() const;
  void take_lease();
  void count(int64_t step);
  void log_changes(const std::string& config_before);

  const RunResources& resources_;
  const bool take_over_;
  LeaseId lease_id_;
  std::unique_ptr<Lease> lease_;  // on rank 0
  RunState state_;
  LatestCheckpoint latest_;
  std::unique_ptr<RunProgress> progress_;
  std::unique_ptr<RunDirectory> directory_;
};

}  // namespace tmamba
