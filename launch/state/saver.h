// class Saver: writes checkpoints asynchronously. Only the main thread communicates: a save starts at a step boundary,
// each rank's thread writes its file, and when all are done, which the ranks learn from the all-reduce of a later step,
// rank 0's thread commits the checkpoint. At most one save is in flight.
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

// The outcome of a save. The same on all ranks, except stall_seconds.
struct SaveOutcome {
  int64_t step = 0;
  std::string problem;  // why the save failed; empty: it succeeded
  SaveReport report;
  double stall_seconds = 0;  // training on this rank was blocked
};

class Saver {
 public:
  Saver(Communicator& comm, std::filesystem::path checkpoints, SaveOptions options);
  // Cancels the save in flight.
  ~Saver();
  Saver(const Saver&) = delete;
  Saver& operator=(const Saver&) = delete;

  bool in_flight() const { return save_ != nullptr; }
  // Whether this rank's thread has finished the current part of the save.
  bool ready() const { return !working_; }

  // Seconds that saves have blocked training so far.
  double total_stall_seconds() const { return total_stall_seconds_; }

  // Starts a save; none may be in flight. `collect` returns the slices that this rank writes, which must not change
  // until the save has ended. Throws UserError; any other failure is the outcome. Collective, as are the next two.
  std::optional<SaveOutcome> start(int64_t step, const std::function<std::vector<TensorSlice>()>& collect,
                                   const nlohmann::json& state);
  // Called when all ranks are ready(): begins the next part. Returns the outcome after the last part.
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
