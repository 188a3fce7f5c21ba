// class Schedule: how long a run trains, and the learning rate of each step (model/SPEC.md section 7). Both count what
// the run was told its length in, steps or tokens. Where the batch has changed, steps and tokens are converted by what
// each part of the run really had, so a change of batch re-scales nothing that is done.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/config/config.h"

namespace tmamba {

// The run had made `step` steps and consumed `tokens` tokens when it resumed with another number of tokens per step.
struct BatchChange {
  int64_t step = 0, tokens = 0;
};

inline int64_t step_tokens(const RunConfig& config) { return config.train.global_batch * config.data.seq_len; }

class Schedule {
 public:
  // `changes` in ascending order; empty for a run whose batch never changed.
  explicit Schedule(const RunConfig& config, std::vector<BatchChange> changes = {});

  // train.steps, or as many as consume train.tokens.
  int64_t total_steps() const { return total_steps_; }
  // Linear from 0 to train.lr over train.warmup, then a cosine that reaches train.min_lr at train.decay.
  double learning_rate(int64_t step) const;

  // What the schedule cannot do as it is configured, a sentence each.
  std::vector<std::string> warnings() const;

 private:
  double tokens_at(double step) const;
  double step_at(double tokens) const;
  double position(double step) const;
  double position_of(const Amount& amount) const;

  TrainConfig train_;
  bool by_tokens_;
  double step_tokens_;
  std::vector<BatchChange> changes_;  // begins with step 0
  int64_t total_steps_ = 0;
  double end_ = 0, warmup_ = 0, decay_ = 0;  // positions
};

}  // namespace tmamba
