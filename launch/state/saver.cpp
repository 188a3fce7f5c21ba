#include "launch/state/saver.h"

#include <csignal>

#include "kernels/base/clock.h"

namespace tmamba {

Saver::Saver(Communicator& comm, std::filesystem::path checkpoints, SaveOptions options)
    : comm_(comm), checkpoints_(std::move(checkpoints)), options_(std::move(options)) {
  // Signals go to the main thread, so that they interrupt its system calls.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { work(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Saver::~Saver() {
  if (save_) save_->cancel();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Saver::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || working_; });
    if (stopping_) return;
    lock.unlock();
    part_ == Part::writing ? save_->write() : save_->commit();
    lock.lock();
    working_ = false;
    changed_.notify_all();
  }
}

void Saver::hand_over(Part part) {
  const std::lock_guard lock(mutex_);
  part_ = part;
  working_ = true;
  changed_.notify_all();
}

void Saver::wait_until_ready() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !working_; });
}

// Runs one part of a save on the main thread: counts the time, and turns a failure into an outcome.
std::optional<SaveOutcome> Saver::guarded(const std::function<std::optional<SaveOutcome>()>& step) {
  const auto begin = Clock::now();
  std::optional<SaveOutcome> outcome;
  try {
    outcome = step();
  } catch (const UserError&) {
    throw;
  } catch (const Error& error) {
    save_.reset();
    outcome = SaveOutcome{.step = step_, .problem = error.what(), .report = {}, .stall_seconds = 0};
  }
  const double stall = seconds_since(begin);
  stall_seconds_ += stall;
  total_stall_seconds_ += stall;
  if (outcome) outcome->stall_seconds = stall_seconds_;
  return outcome;
}

std::optional<SaveOutcome> Saver::start(int64_t step, const std::function<std::vector<TensorSlice>()>& collect,
                                        const nlohmann::json& state) {
  TM_CHECK(!in_flight(), "a save of step ", step_, " is in flight");
  step_ = step;
  stall_seconds_ = 0;
  return guarded([&]() -> std::optional<SaveOutcome> {
    save_ = std::make_unique<CheckpointSave>(comm_, checkpoints_, step, collect(), state, options_);
    options_.check_slices_first = false;  // the ranks' slices never change
    hand_over(Part::writing);
    return std::nullopt;
  });
}

std::optional<SaveOutcome> Saver::advance() {
  return guarded([&]() -> std::optional<SaveOutcome> {
    wait_until_ready();
    if (part_ == Part::writing) {
      save_->agree();
      hand_over(Part::committing);
      return std::nullopt;
    }
    SaveOutcome outcome{.step = step_, .problem = "", .report = save_->report(), .stall_seconds = 0};
    save_.reset();
    return outcome;
  });
}

SaveOutcome Saver::finish() {
  std::optional<SaveOutcome> outcome;
  while (!outcome) outcome = advance();
  return *outcome;
}

}  // namespace tmamba
