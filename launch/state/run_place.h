// How far a run is: its place in the data, and which files that is. A run resumes there with any batch, ranks and
// sequence length. Part of the state in its checkpoints.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/tokens/stretch.h"
#include "launch/config/schedule.h"

namespace tmamba {

struct RunState;

struct RunPlace {
  std::vector<Stretch> stretches;            // empty before the run has begun, and in older checkpoints
  std::vector<BatchChange> batches;          // without the batch that the run began with
  std::map<std::string, std::string> files;  // path -> identity of every token file used

  // Sequences drawn in the last stretch.
  int64_t sequences() const;
  void draw(int64_t sequences);
};

nlohmann::json place_json(const RunPlace& place);
// Throws nlohmann::json::exception, or UserError where the numbers are impossible.
RunPlace place_from_json(const nlohmann::json& json);

// A token file that the run uses.
struct UsedFile {
  std::string key;  // "data.train"
  std::string path, identity;
  double bytes_per_token = 0;
};

// Throws UserError where a file has other contents at the same path than the run has used, unless data.changed accepts.
void require_same_files(const RunState& state, const RunConfig& now, const std::vector<UsedFile>& files);

// What changed in the place of a run when it resumed, for its log.
struct PlaceChange {
  std::string event;  // "data_changed", "stretch", "batch_changed", "rate_jump"
  nlohmann::json details;
  std::string text;
};

// Begins the place of a new run, or continues that of `state` under the present configuration and files, of which the
// first is that of data.train and has `train_tokens` tokens.
std::vector<PlaceChange> continue_place(RunState& state, const RunConfig& now, const std::vector<UsedFile>& files,
                                        int64_t train_tokens);

}  // namespace tmamba
