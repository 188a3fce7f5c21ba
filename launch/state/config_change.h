// What of a configuration may change while a run goes on from its checkpoints, and what not.
#pragma once

#include <string>
#include <vector>

#include "launch/config/config.h"
#include "launch/state/run_state.h"

namespace tmamba {

struct ConfigChange {
  std::string key, was, now;  // values as TOML
};

// The keys of [model] that make another model of it: its weights mean something else. What rounding alone tells apart
// (model.chunk) and what only a beginning needs (model.init_std) are none.
std::vector<ConfigChange> model_changes(const RunConfig& was, const RunConfig& now);

// Throws UserError naming them where the run of `state`, which lies in now.run.dir, is one of another model.
void require_same_model(const RunState& state, const RunConfig& now);

// The keys that change losses and weights from here on by more than rounding: data, their order, the learning rate, the
// optimizer, precision. Layout and device are none.
std::vector<ConfigChange> training_changes(const RunConfig& was, const RunConfig& now);

// "data.seq_len 128, was 64; train.lr 0.001, was 0.003".
std::string text_of(const std::vector<ConfigChange>& changes);

}  // namespace tmamba
