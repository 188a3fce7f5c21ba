// class SpikeGuard: computes from recent steps the limits above which a loss or gradient norm is a spike.
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
  // A spike is above its limit: `sigmas` standard deviations over the mean of the last `window` applied steps; infinity
  // before there are that many.
  struct Limits {
    double loss, grad_norm;
  };
  Limits limits() const;
  // Remembers an applied step.
  void applied(double loss, double grad_norm);

  // Saved in checkpoints, so that a resumed run has the same limits; null where the guard is off.
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
