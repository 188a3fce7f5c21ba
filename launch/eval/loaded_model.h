// A model loaded from a checkpoint for evaluation or generation.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/tokens/token_file.h"
#include "data/tokens/tokenizer.h"
#include "dist/world/world.h"
#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "launch/config/config.h"
#include "launch/run/rank_agreement.h"
#include "launch/state/run_state.h"
#include "model/parameters.h"

namespace tmamba {

// A checkpoint's state, read before anything is allocated.
struct SavedModel {
  std::unique_ptr<CheckpointReader> reader;
  RunConfig config;
  RunState state;

  const std::filesystem::path& path() const { return reader->path(); }
};

struct LoadedModel {
  std::filesystem::path path;  // of the checkpoint
  RunConfig config;
  RunState state;
  std::unique_ptr<Ops> ops;  // of the configuration's device
  std::unique_ptr<ParameterTable> table;
  Buffer buffer;
  Tensor params;  // flat
};

// `path` is a checkpoint, or a run directory or its checkpoints folder, which stand for the latest complete checkpoint.
// `overrides` are assignments as for load_config, applied to the configuration in the checkpoint. `facts` gets what
// ranks must agree on.
SavedModel open_model(const std::filesystem::path& path, const std::vector<std::string>& overrides, RankFacts& facts);
// Collective; each rank takes a device of its own.
LoadedModel load_model(SavedModel saved, World& world);

// The tokenizer of a token file: `override_name` if given, else "bytes" or the file stored beside the token file.
// Throws UserError if the token file was made with another tokenizer.
std::unique_ptr<Tokenizer> load_tokenizer_of(const TokenFile& file, const std::string& override_name);

}  // namespace tmamba
