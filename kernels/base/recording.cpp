#include "kernels/base/recording.h"

namespace tmamba {

namespace {

thread_local Recorder* recorder = nullptr;

struct Current {
  explicit Current(Recorder* now) { recorder = now; }
  ~Current() { recorder = nullptr; }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
};

}  // namespace

Recorder* Recorder::current() { return recorder; }

void Recorder::at_end(const void* who, std::function<void()> action) {
  for (const auto& [other, there] : at_end_) {
    if (other == who) return;
  }
  at_end_.emplace_back(who, std::move(action));
}

void Recorder::take_down(const std::function<void()>& issue) {
  const Current current(this);
  issue();
  for (const auto& [who, action] : at_end_) action();
}

void Recorder::issued_again() const {
  for (const auto& action : on_replay_) action();
}

}  // namespace tmamba
