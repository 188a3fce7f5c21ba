#include "launch/train/spike_guard.h"

#include <cmath>
#include <limits>

namespace tmamba {

namespace {

// Two passes from the oldest to the latest step: the same bits whether the run was resumed or not.
double limit_of(const std::deque<double>& before, double sigmas) {
  const double n = static_cast<double>(before.size());
  double mean = 0, variance = 0;
  for (double y : before) mean += y / n;
  for (double y : before) variance += (y - mean) * (y - mean) / n;
  return mean + sigmas * std::sqrt(variance);
}

}  // namespace

SpikeGuard::Limits SpikeGuard::limits() const {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (!on() || loss_.size() < window_) return {kInfinity, kInfinity};
  return {limit_of(loss_, sigmas_), limit_of(grad_norm_, sigmas_)};
}

void SpikeGuard::applied(double loss, double grad_norm) {
  if (!on()) return;
  loss_.push_back(loss);
  grad_norm_.push_back(grad_norm);
  shorten();
}

void SpikeGuard::shorten() {
  while (loss_.size() > window_) loss_.pop_front();
  while (grad_norm_.size() > window_) grad_norm_.pop_front();
}

nlohmann::json SpikeGuard::state() const {
  if (!on()) return nullptr;
  return {{"loss", loss_}, {"grad_norm", grad_norm_}};
}

void SpikeGuard::restore(const nlohmann::json& state) {
  loss_.clear(), grad_norm_.clear();
  if (!on() || state.is_null()) return;
  loss_ = state.at("loss").get<std::deque<double>>();
  grad_norm_ = state.at("grad_norm").get<std::deque<double>>();
  shorten();
}

}  // namespace tmamba
