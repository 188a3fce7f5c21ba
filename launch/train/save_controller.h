// class SaveController: when the run saves a checkpoint (checkpoint.every, the switch file SAVE, the end), from which
// memory, and what follows when a save ends or fails. launch/state/saver.h writes the checkpoint.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dist/world/host_group.h"
#include "launch/run/switch_file.h"
#include "launch/state/save_interval.h"
#include "launch/state/saver.h"
#include "launch/state/snapshot.h"
#include "launch/train/run_attempt.h"

namespace tmamba {

class SaveController {
 public:
  // All references must outlive this.
  SaveController(const RunResources& resources, RunAttempt& attempt, TrainingStep& step);

  // Allocates what saves need and tries the space on the disk, so that neither is missing after hours of training.
  // Collective, as are save(), save_now() and finish().
  void prepare();

  // Votes of this rank: to save after this step, and that its thread is done with its part of the save in flight.
  bool wants_save() const;
  bool ready() const { return in_flight() && saver_->ready(); }

  // A step took `seconds`; `all_ready`: the votes of all ranks were ready(). Advances the save in flight.
  void count_step(double seconds) { interval_.step(seconds, in_flight()); }
  void advance(bool all_ready);

  // Starts a checkpoint of the current step. With `async` it is written while training continues.
  void save(bool async);
  // Saves the current step and waits; throws Error where that fails: the run is about to end.
  void save_now();
  // Waits for the save in flight, if there is one.
  void finish();

  // Seconds that saves have kept training waiting so far.
  double stall_seconds() const { return saver_ ? saver_->total_stall_seconds() : 0; }

 private:
  // A failed save leaves the file SAVE for another try, after a delay that doubles up to ten minutes.
  class Retry {
   public:
    void failed();
    void succeeded() { delay_seconds_ = 0; }
    bool too_soon() const;

   private:
    double delay_seconds_ = 0;
    std::chrono::steady_clock::time_point failed_at_;
  };

  bool in_flight() const { return saver_ && saver_->in_flight(); }
  std::vector<TensorSlice> slices(bool async);
  std::vector<TensorSlice> owned_slices(const std::function<Tensor(const Tensor&)>& to_host);
  std::string weights_problem() const;
  void report(const SaveOutcome& outcome);
  void report_failure(const SaveOutcome& outcome);

  const RunResources& resources_;
  RunAttempt& attempt_;
  TrainingStep& step_;
  const SwitchFile switch_;
  SaveInterval interval_;
  std::unique_ptr<HostGroup> host_;     // checkpoint.writers = "node": the ranks that one rank writes for; else null
  std::unique_ptr<Snapshot> snapshot_;  // outlives the thread that reads it
  std::unique_ptr<Saver> saver_;        // null before prepare()
  bool answers_switch_ = false;         // the save in flight was requested by the file SAVE
  std::string problem_;                 // of the last save that failed
  Retry retry_;
};

}  // namespace tmamba
