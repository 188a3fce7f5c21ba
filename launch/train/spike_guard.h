// class SpikeGuard: tells a loss or gradient norm that leaps out of those of the steps before.
#pragma once

#include <cstdint>
#include <deque>
#include <nlohmann/json.hpp>

namespace tmamba {

class SpikeGuard {
 public:
  // Off where `window` or `sigmas` is 0.
  SpikeGuard(int64_t window, double sigmas) : window_(static_cast<size_t>(window)), sigmas_(sigmas) {}

  bool on() const { return window_ > 0 && sigmas_ > 0; }
  // What leaps is more than this: `sigmas` standard deviations over the mean of the last `window` steps taken; infinity
  // before there are that many.
  struct Limits {
    double loss, grad_norm;
  };
  Limits limits() const;
  // Remembers a step that was taken.
  void took(double loss, double grad_norm);

  // What a checkpoint holds of it; null where it is off. With the state a resumed run judges as if it had not stopped.
  nlohmann::json state() const;
  // Throws nlohmann::json::exception where that is not a state.
  void restore(const nlohmann::json& state);

 private:
  void shorten();
  size_t window_;
  double sigmas_;
  std::deque<double> loss_, grad_norm_;
};

}  // namespace tmamba
