#include "launch/state/run_place.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/base/check.h"
#include "launch/cli/format.h"
#include "launch/state/run_state.h"

namespace tmamba {

namespace {

using nlohmann::json;

RunConfig config_of(const RunState& state) {
  return parse_config(state.config, str("configuration of step ", state.step), {});
}

std::string used_identity(const RunState& state, const RunConfig& was, const UsedFile& file) {
  const auto found = state.place.files.find(file.path);
  if (found != state.place.files.end()) return found->second;
  // Older checkpoints hold no identities. The mean bytes of a token tell files apart well enough.
  const bool known = file.key == "data.train" && file.path == was.data.train && state.place.files.empty();
  return known && state.bytes_per_token > 0 && state.bytes_per_token != file.bytes_per_token ? "unknown"
                                                                                             : file.identity;
}

// Before checkpoints held stretches, the sequences drawn were the steps times the batch, and those left out.
void complete(RunState& state, const RunConfig& was, const UsedFile& train) {
  if (!state.place.stretches.empty()) return;
  const bool same = state.bytes_per_token <= 0 || state.bytes_per_token == train.bytes_per_token;
  const int64_t sequences = state.step * was.train.global_batch + state.skipped_sequences;
  state.place.stretches = {
      {.first_token = 0,
       .seq_len = was.data.seq_len,
       .sources = {
           {.name = "train", .identity = same ? train.identity : "unknown", .drawn = sequences * was.data.seq_len}}}};
}

void change_files(RunState& state, const RunConfig& was, const std::vector<UsedFile>& files,
                  std::vector<PlaceChange>& changes) {
  for (const UsedFile& file : files) {
    const std::string before = used_identity(state, was, file);
    if (before != file.identity) {
      changes.push_back(
          {"data_changed",
           {{"key", file.key}, {"path", file.path}, {"was", before}, {"now", file.identity}},
           str(file.key, " = ", file.path, " has other contents than before (data.changed = \"accept\")")});
    }
  }
  for (const UsedFile& file : files) state.place.files[file.path] = file.identity;
}

void change_stretch(RunState& state, const RunConfig& now, const UsedFile& train, int64_t train_tokens,
                    std::vector<PlaceChange>& changes) {
  std::vector<Stretch>& list = state.place.stretches;
  const Stretch last = list.back();
  const bool other_file = last.sources.front().identity != train.identity;
  if (!other_file && last.seq_len == now.data.seq_len) return;
  const SourcePlace at = place_after(list, train.identity, train_tokens);
  const int64_t left_out = left_out_tokens(at, train_tokens, now.data.seq_len);
  list.push_back({.first_token = state.tokens,
                  .seq_len = now.data.seq_len,
                  .sources = {{.name = "train", .identity = train.identity}}});
  changes.push_back(
      {"stretch",
       {{"first_token", state.tokens},
        {"seq_len", now.data.seq_len},
        {"identity", train.identity},
        {"epoch", at.epoch},
        {"token_of_epoch", at.offset},
        {"left_out_tokens", left_out}},
       str("from token ", state.tokens, " of the run on: ", other_file ? str(train.path, ", ") : "", "sequences of ",
           now.data.seq_len, " tokens", last.seq_len != now.data.seq_len ? str(", was ", last.seq_len) : "",
           ", from token ", at.offset, " of epoch ", at.epoch + 1, " of the file",
           left_out > 0 ? str("; the last ", left_out, " tokens of that epoch fill no sequence") : "")});
}

void change_batch(RunState& state, const RunConfig& was, const RunConfig& now, std::vector<PlaceChange>& changes) {
  std::vector<BatchChange>& batches = state.place.batches;
  const BatchChange from = batches.empty() ? BatchChange{} : batches.back();
  const int64_t before = step_tokens(was), after = step_tokens(now);
  if (from.tokens + (state.step - from.step) * after == state.tokens && before == after) return;
  if (state.step > from.step) batches.push_back({state.step, state.tokens});
  if (before == after) return;
  changes.push_back(
      {"batch_changed",
       {{"tokens", state.tokens}, {"step_tokens", {{"was", before}, {"now", after}}}},
       str("steps of ", now.train.global_batch, " x ", now.data.seq_len, " tokens, were ", was.train.global_batch,
           " x ", was.data.seq_len, ": the data continues at token ", state.tokens, " of the run, the schedule at ",
           now.train.steps > 0 ? str("step ", state.step, " of ", now.train.steps)
                               : str("token ", state.tokens, " of ", now.train.tokens))});
}

// The rate of the next step as the schedule was, and as it is now.
void compare_rates(const RunState& state, const RunConfig& was, const RunConfig& now,
                   const std::vector<BatchChange>& batches_before, std::vector<PlaceChange>& changes) {
  constexpr double kJump = 0.01;                              // relative
  if (was.train.steps == 0 && was.train.tokens == 0) return;  // an import, which had no schedule
  const double before = Schedule(was, batches_before).learning_rate(state.step + 1);
  const double after = Schedule(now, state.place.batches).learning_rate(state.step + 1);
  if (std::abs(after - before) <= kJump * std::max(before, after)) return;
  changes.push_back({"rate_jump",
                     {{"was", before}, {"now", after}},
                     str("warning: the learning rate jumps from ", scientific(before, 2),
                         ", which the schedule had "
                         "for step ",
                         state.step + 1, " before, to ", scientific(after, 2),
                         before > 0 ? str(" (", fixed(after / before, 2), " times)") : "")});
}

}  // namespace

int64_t RunPlace::sequences() const { return stretches.back().sources.front().drawn / stretches.back().seq_len; }

void RunPlace::draw(int64_t sequences) {
  stretches.back().sources.front().drawn += sequences * stretches.back().seq_len;
}

json place_json(const RunPlace& place) {
  json stretches = json::array(), batches = json::array();
  for (const Stretch& stretch : place.stretches) {
    json sources = json::array();
    for (const StretchSource& source : stretch.sources) {
      sources.push_back(
          {{"name", source.name}, {"identity", source.identity}, {"weight", source.weight}, {"drawn", source.drawn}});
    }
    stretches.push_back({{"first_token", stretch.first_token}, {"seq_len", stretch.seq_len}, {"sources", sources}});
  }
  for (const BatchChange& change : place.batches) batches.push_back({{"step", change.step}, {"tokens", change.tokens}});
  return {{"stretches", stretches}, {"batches", batches}, {"files", place.files}};
}

RunPlace place_from_json(const json& value) {
  RunPlace place;
  const auto require = [](bool possible, const char* what) {
    if (!possible) throw UserError(str("the run's place in the data is damaged: ", what));
  };
  for (const json& stretch : value.at("stretches")) {
    Stretch& out = place.stretches.emplace_back();
    out.first_token = stretch.at("first_token").get<int64_t>();
    out.seq_len = stretch.at("seq_len").get<int64_t>();
    require(out.seq_len > 0, "a sequence length is not positive");
    for (const json& source : stretch.at("sources")) {
      out.sources.push_back({.name = source.at("name").get<std::string>(),
                             .identity = source.at("identity").get<std::string>(),
                             .weight = source.at("weight").get<double>(),
                             .drawn = source.at("drawn").get<int64_t>()});
      require(out.sources.back().drawn >= 0, "a number of tokens is negative");
    }
    require(out.sources.size() == 1, "a stretch has not one source");
  }
  BatchChange last;
  for (const json& change : value.at("batches")) {
    place.batches.push_back({change.at("step").get<int64_t>(), change.at("tokens").get<int64_t>()});
    const BatchChange& now = place.batches.back();
    require(now.step > last.step && now.tokens >= last.tokens, "changes of the batch are out of order");
    last = now;
  }
  place.files = value.at("files").get<std::map<std::string, std::string>>();
  return place;
}

void require_same_files(const RunState& state, const RunConfig& now, const std::vector<UsedFile>& files) {
  if (now.data.changed == Changed::accept) return;
  const RunConfig was = config_of(state);
  for (const UsedFile& file : files) {
    if (used_identity(state, was, file) == file.identity) continue;
    throw UserError(str(file.key, " = ", file.path, " has other contents than when the run of ", now.run.dir,
                        " used it last (step ", state.step,
                        "); restore the file, set another run.dir, or set data.changed = "
                        "\"accept\": ",
                        file.key == "data.train" ? "training then begins at the new file's start"
                                                 : "losses on it are then another series"));
  }
}

std::vector<PlaceChange> continue_place(RunState& state, const RunConfig& now, const std::vector<UsedFile>& files,
                                        int64_t train_tokens) {
  std::vector<PlaceChange> changes;
  const UsedFile& train = files.front();
  if (state.config.empty()) {
    state.place.stretches = {
        {.first_token = 0, .seq_len = now.data.seq_len, .sources = {{.name = "train", .identity = train.identity}}}};
    for (const UsedFile& file : files) state.place.files[file.path] = file.identity;
    return changes;
  }
  const RunConfig was = config_of(state);
  const std::vector<BatchChange> batches_before = state.place.batches;
  complete(state, was, train);
  change_files(state, was, files, changes);
  change_stretch(state, now, train, train_tokens, changes);
  change_batch(state, was, now, changes);
  compare_rates(state, was, now, batches_before, changes);
  return changes;
}

}  // namespace tmamba
