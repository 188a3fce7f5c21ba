// struct RunResources: what a run has before its tensors are allocated: the checked configuration, data, device, ranks
// and plan. The constructor reports every mistake that can be found without an allocation (`train --check`).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "data/tokens/loader.h"
#include "data/tokens/tokenizer.h"
#include "dist/world/mesh.h"
#include "dist/world/world.h"
#include "kernels/ops/ops.h"
#include "launch/config/batch_split.h"
#include "launch/config/schedule.h"
#include "launch/plan/run_plan.h"
#include "launch/state/run_place.h"

namespace tmamba {

struct ValidationFile {
  std::string name;
  TokenFile file;
};

struct RunData {
  // Opens the files of `config.data`; sets model.vocab = 0 to the tokenizer's vocabulary. Throws UserError.
  explicit RunData(RunConfig& config);

  TokenFile train;
  Loader loader;  // reads `train`
  std::vector<ValidationFile> valid;
  std::unique_ptr<Tokenizer> tokenizer;

  double bytes_per_token() const;  // of the training text
  // Every token file, that of data.train first.
  std::vector<UsedFile> used_files() const;
};

struct RunResources {
  // Collective. `world` must outlive this.
  RunResources(RunConfig config, World& world);

  bool is_main() const { return world.rank() == 0; }  // rank 0 prints and writes logs

  RunConfig config;
  World& world;
  const MeshShape shape;
  std::unique_ptr<RunData> data;
  BatchSplit batch;
  std::unique_ptr<Schedule> schedule;  // of a new run; of one that resumes after RunAttempt::open_directory()
  RunPlan plan;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Communicator> all;  // all ranks, tensors of the device
  std::unique_ptr<Mesh> mesh;
  size_t free_device_bytes = 0;  // of the GPU, before anything is allocated
};

}  // namespace tmamba
