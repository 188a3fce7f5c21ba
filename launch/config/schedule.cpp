#include "launch/config/schedule.h"

#include <algorithm>
#include <cmath>

#include "launch/cli/format.h"
#include "launch/config/toml_value.h"
#include "model/optimizer.h"

namespace tmamba {

// Positions in the schedule are steps, or tokens in units of the present step: where the batch has never changed both
// are the number of the step.
Schedule::Schedule(const RunConfig& config, std::vector<BatchChange> changes)
    : train_(config.train),
      by_tokens_(config.train.steps == 0),
      step_tokens_(static_cast<double>(step_tokens(config))),
      changes_(std::move(changes)) {
  changes_.insert(changes_.begin(), BatchChange{});
  const BatchChange& last = changes_.back();
  const int64_t left = std::max<int64_t>(0, train_.tokens - last.tokens);
  total_steps_ = by_tokens_ ? last.step + ceil_div(left, step_tokens(config)) : train_.steps;
  end_ = position(static_cast<double>(total_steps_));
  warmup_ = position_of(train_.warmup);
  decay_ = position_of(train_.decay);
}

double Schedule::tokens_at(double step) const {
  for (size_t i = 0; i + 1 < changes_.size(); ++i) {
    const BatchChange &from = changes_[i], &to = changes_[i + 1];
    if (step >= static_cast<double>(to.step)) continue;
    const double done = (step - static_cast<double>(from.step)) / static_cast<double>(to.step - from.step);
    return static_cast<double>(from.tokens) + done * static_cast<double>(to.tokens - from.tokens);
  }
  const BatchChange& last = changes_.back();
  return static_cast<double>(last.tokens) + (step - static_cast<double>(last.step)) * step_tokens_;
}

double Schedule::step_at(double tokens) const {
  for (size_t i = 0; i + 1 < changes_.size(); ++i) {
    const BatchChange &from = changes_[i], &to = changes_[i + 1];
    if (tokens >= static_cast<double>(to.tokens)) continue;
    const double done = (tokens - static_cast<double>(from.tokens)) / static_cast<double>(to.tokens - from.tokens);
    return static_cast<double>(from.step) + done * static_cast<double>(to.step - from.step);
  }
  const BatchChange& last = changes_.back();
  return static_cast<double>(last.step) + (tokens - static_cast<double>(last.tokens)) / step_tokens_;
}

double Schedule::position(double step) const { return by_tokens_ ? tokens_at(step) / step_tokens_ : step; }

double Schedule::position_of(const Amount& amount) const {
  switch (amount.unit) {
    case AmountUnit::percent:
      return end_ * (amount.value / 100);
    case AmountUnit::steps:
      return position(amount.value);
    case AmountUnit::tokens:
      return by_tokens_ ? amount.value / step_tokens_ : step_at(amount.value);
    case AmountUnit::of_run:
      break;
  }
  return by_tokens_ ? amount.value / step_tokens_ : amount.value;
}

double Schedule::learning_rate(int64_t step) const {
  const LearningRate rate{.peak = train_.lr, .min = train_.min_lr, .warmup = warmup_, .end = decay_};
  return rate.at(position(static_cast<double>(step)));
}

std::vector<std::string> Schedule::warnings() const {
  std::vector<std::string> list;
  const std::string length = by_tokens_ ? str("train.tokens = ", train_.tokens) : str("train.steps = ", train_.steps);
  const std::string last = scientific(learning_rate(total_steps_), 2);
  const std::string warmup = str("train.warmup = ", to_string(train_.warmup));
  if (warmup_ > end_) {
    list.push_back(str(warmup, " is longer than the run (", length, "): the learning rate reaches ", last,
                       ", not train.lr = ", text_of(train_.lr), "; lower train.warmup or lengthen the run"));
  } else if (by_tokens_ && train_.warmup.unit == AmountUnit::of_run && warmup_ > 0 && warmup_ < 1) {
    list.push_back(str(warmup, " counts tokens, as train.tokens does, and is less than a step of ",
                       static_cast<int64_t>(step_tokens_), ": there is no warm-up; for steps write \"",
                       to_string(train_.warmup), " steps\""));
  }
  if (train_.min_lr > train_.lr) {
    list.push_back(str("train.min_lr = ", text_of(train_.min_lr), " is above train.lr = ", text_of(train_.lr),
                       ": the learning rate rises to the end of the run; lower train.min_lr"));
  }
  const std::string decay = str("train.decay = \"", to_string(train_.decay), "\"");
  if (decay_ > end_ && warmup_ <= end_) {
    list.push_back(str(decay, " ends after the run (", length, "): the learning rate falls to ", last,
                       ", not to train.min_lr = ", text_of(train_.min_lr), "; lower train.decay or lengthen the run"));
  } else if (decay_ < end_ && decay_ < warmup_) {
    list.push_back(str(decay, " ends before ", warmup, " does: the learning rate drops to train.min_lr = ",
                       text_of(train_.min_lr), " without a decay; raise train.decay"));
  }
  return list;
}

}  // namespace tmamba
