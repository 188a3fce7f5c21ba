// What changed between the configuration that a run's checkpoints hold and the one it resumes with. The rule of each
// key (Resume) is declared with the key in launch/config/config_keys.cpp.
#pragma once

#include <string>
#include <vector>

#include "launch/config/config.h"
#include "launch/state/run_state.h"

namespace tmamba {

struct ConfigChange {
  std::string key, was, now;  // values as TOML; "(none)" where one configuration does not have the key
};

// Changed keys that make it another model (Resume::fixed). Two texts of the same schedule are no change.
std::vector<ConfigChange> model_changes(const RunConfig& was, const RunConfig& now);

// Throws UserError naming these keys if the run in now.run.dir, whose state is `state`, has another model.
void require_same_model(const RunState& state, const RunConfig& now);

// Changed keys after which losses and weights differ by more than rounding (Resume::changes_numbers).
std::vector<ConfigChange> training_changes(const RunConfig& was, const RunConfig& now);

// "data.seq_len 64 -> 128, train.lr 2.5e-4 -> 0.001".
std::string text_of(const std::vector<ConfigChange>& changes);

}  // namespace tmamba
