#include "launch/state/config_change.h"

#include <algorithm>
#include <cstdint>
#include <map>

#include "kernels/base/check.h"

namespace tmamba {

namespace {

// Keys under this rule whose values differ. An entry of [[a.list]] that only one of the two has counts as a change of
// all its keys.
std::vector<ConfigChange> changes_of(Resume rule, const RunConfig& was, const RunConfig& now) {
  const std::vector<KeyValue> before = config_values(was), after = config_values(now);
  std::map<std::string, std::string> old_text, new_text;
  for (const KeyValue& key : before) old_text[key.name] = key.text;
  for (const KeyValue& key : after) new_text[key.name] = key.text;
  std::vector<ConfigChange> changes;
  for (const KeyValue& key : after) {
    const std::string text = old_text.contains(key.name) ? old_text.at(key.name) : "(none)";
    if (key.resume == rule && text != key.text) changes.push_back({key.name, text, key.text});
  }
  for (const KeyValue& key : before) {
    if (key.resume == rule && !new_text.contains(key.name)) changes.push_back({key.name, key.text, "(none)"});
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

bool is_schedule(const ConfigChange& change) { return change.key == "model.schedule"; }

}  // namespace

std::vector<ConfigChange> model_changes(const RunConfig& was, const RunConfig& now) {
  std::vector<ConfigChange> changes = changes_of(Resume::fixed, was, now);
  // Layers cycle through the list, so two texts can mean the same schedule.
  if (same_schedule(was.model, now.model)) std::erase_if(changes, is_schedule);
  return changes;
}

void require_same_model(const RunState& state, const RunConfig& now) {
  const RunConfig before = parse_config(state.config, str("configuration of step ", state.step), {});
  const auto changes = model_changes(before, now);
  if (changes.empty()) return;
  const bool schedule = std::any_of(changes.begin(), changes.end(), is_schedule);
  throw UserError(
      str("run.dir = ", now.run.dir, " holds a run of another model, at step ", state.step,
          "; changed: ", text_of(changes), ". Restore these values, or set another run.dir",
          schedule ? " (eval and generate evaluate the same weights under another schedule: --schedule)" : ""));
}

std::vector<ConfigChange> training_changes(const RunConfig& was, const RunConfig& now) {
  return changes_of(Resume::changes_numbers, was, now);
}

std::string text_of(const std::vector<ConfigChange>& changes) {
  std::string text;
  for (const ConfigChange& change : changes) {
    text += str(text.empty() ? "" : ", ", change.key, " ", change.was, " -> ", change.now);
  }
  return text;
}

}  // namespace tmamba
