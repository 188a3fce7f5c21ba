#include "launch/state/config_change.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>

#include "kernels/base/check.h"

namespace tmamba {

namespace {

// model.schedule apart: layers cycle through it, so that two texts may be one schedule.
constexpr std::array kOfTheModel{"model.vocab",     "model.dim",      "model.heads",     "model.layers",
                                 "model.ffn",       "model.conv",     "model.tied_head", "model.z_gate",
                                 "model.converter", "model.norm_eps", "model.rope_theta"};
constexpr std::array kOfTheTraining{
    "data.train", "data.seq_len", "data.seed",       "train.steps",        "train.tokens",      "train.global_batch",
    "train.lr",   "train.min_lr", "train.warmup",    "train.weight_decay", "train.clip",        "train.betas",
    "train.eps",  "train.dtype",  "train.max_skips", "train.spike_window", "train.spike_sigmas"};

template <class Keys>
std::vector<ConfigChange> changes_of(const Keys& keys, const RunConfig& was, const RunConfig& now) {
  const auto before = config_values(was), after = config_values(now);
  std::vector<ConfigChange> changes;
  for (const char* key : keys) {
    TM_CHECK(before.contains(key), "there is no key ", key);
    if (before.at(key) != after.at(key)) changes.push_back({key, before.at(key), after.at(key)});
  }
  return changes;
}

bool same_schedule(const ModelConfig& a, const ModelConfig& b) {
  for (int64_t layer = 0; layer < std::max(a.layers, b.layers); ++layer) {
    const auto of = [&](const ModelConfig& m) { return m.schedule[static_cast<size_t>(layer) % m.schedule.size()]; };
    if (!(of(a) == of(b))) return false;
  }
  return true;
}

}  // namespace

std::vector<ConfigChange> model_changes(const RunConfig& was, const RunConfig& now) {
  std::vector<ConfigChange> changes = changes_of(kOfTheModel, was, now);
  if (!same_schedule(was.model, now.model)) {
    changes.push_back(changes_of(std::array{"model.schedule"}, was, now).front());
  }
  return changes;
}

void require_same_model(const RunState& state, const RunConfig& now) {
  const RunConfig before = parse_config(state.config, str("configuration of step ", state.step), {});
  const auto changes = model_changes(before, now);
  if (changes.empty()) return;
  const bool schedule = changes.back().key == "model.schedule";
  throw UserError(str("run.dir = ", now.run.dir, " holds a run of another model, at step ", state.step,
                      ". This configuration has ", text_of(changes),
                      ". Go on with the model as it was, or give this one another run.dir",
                      schedule ? " (eval and generate can try another schedule on the same weights: --schedule)" : ""));
}

std::vector<ConfigChange> training_changes(const RunConfig& was, const RunConfig& now) {
  return changes_of(kOfTheTraining, was, now);
}

std::string text_of(const std::vector<ConfigChange>& changes) {
  std::string text;
  for (const ConfigChange& change : changes) {
    text += str(text.empty() ? "" : "; ", change.key, " ", change.now, ", was ", change.was);
  }
  return text;
}

}  // namespace tmamba
