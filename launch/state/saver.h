// class Saver: writes checkpoints behind training. Only the main thread talks to other ranks: a save is started at a
// step boundary, each rank's thread writes its file, and when the ranks have agreed at a later boundary that all are
// through (by the numbers they exchange there anyway), rank 0's thread makes the checkpoint whole. At most one is in
// flight.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "data/checkpoint/checkpoint.h"
#include "dist/comm/communicator.h"

namespace tmamba {

// What became of a save. The same on all ranks but for the seconds training was held up.
struct SaveOutcome {
  int64_t step = 0;
  std::string problem;  // why there is no checkpoint; empty: there is one
  SaveReport report;
  double stall_seconds = 0;  // this rank was kept from training
};

class Saver {
 public:
  Saver(Communicator& comm, std::filesystem::path checkpoints, SaveOptions options);
  // Gives up what is in flight.
  ~Saver();
  Saver(const Saver&) = delete;
  Saver& operator=(const Saver&) = delete;

  bool in_flight() const { return save_ != nullptr; }
  // Whether this rank's thread has nothing left to do in the present part of the save.
  bool ready() const { return !working_; }

  // Seconds that saves have kept training waiting so far.
  double total_stall_seconds() const { return total_stall_seconds_; }

  // Starts a save; none may be in flight. `collect` gives the slices this rank writes, which must not change before
  // the save has ended. A failure that every run would meet again (UserError) is thrown, any other is the outcome.
  // Collective, as are the next two.
  std::optional<SaveOutcome> start(int64_t step, const std::function<std::vector<TensorSlice>()>& collect,
                                   const nlohmann::json& state);
  // Called when all ranks are ready(): goes on to the next part. Returns the outcome where that was the last.
  std::optional<SaveOutcome> advance();
  // Waits for the save in flight.
  SaveOutcome finish();

 private:
  using Clock = std::chrono::steady_clock;
  enum class Part { writing, committing };

  void work();
  void hand_over(Part part);
  void wait_until_ready();
  std::optional<SaveOutcome> guarded(const std::function<std::optional<SaveOutcome>()>& step);

  Communicator& comm_;
  const std::filesystem::path checkpoints_;
  SaveOptions options_;
  std::unique_ptr<CheckpointSave> save_;
  Part part_ = Part::writing;
  int64_t step_ = 0;
  double stall_seconds_ = 0, total_stall_seconds_ = 0;

  std::atomic<bool> working_{false};
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace tmamba
