// The tensors and the small JSON state that a checkpoint holds of a run: parameters, optimizer state and progress, and
// how they are written and read.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"
#include "dist/comm/communicator.h"
#include "launch/config/config.h"
#include "launch/state/run_place.h"
#include "model/optimizer.h"
#include "model/parameters.h"

namespace tmamba {

// Everything but tensors that a run needs to resume from a step.
struct RunState {
  int64_t step = 0;            // optimizer steps taken, skipped ones included
  int64_t tokens = 0;          // tokens consumed
  int64_t skipped = 0;         // steps skipped because their loss or gradient was not finite or too large
  double seconds = 0;          // time spent training
  std::string config;          // effective configuration, TOML
  std::string tokenizer_hash;  // of the data trained on
  double bytes_per_token = 0;  // of the training text
  int64_t skipped_sequences =
      0;                 // sequences left out after a roll-back, since training on them failed (train.max_skips)
  nlohmann::json guard;  // SpikeGuard::state()
  RunPlace place;
};

// The state as a checkpoint holds it.
nlohmann::json state_json(const RunState& state);

// The rows that this rank saves: those that its optimizer owns, except those that another rank holds and writes.
// `writes_owned`: false where another replica writes the same rows. `writes_replicated`: false where another
// tensor-parallel rank writes what all of them hold. `to_host` returns a contiguous tensor that the host can read and
// that does not change until the save has ended.
std::vector<TensorSlice> run_slices(const ParameterTable& table, const Tensor& params, const Optimizer& optimizer,
                                    bool writes_owned, bool writes_replicated,
                                    const std::function<Tensor(const Tensor&)>& to_host);

// Draws the initial values of a run on the host in the accumulate type, and sets `params`, rounded, and the optimizer's
// master copies, exact.
void initialize_run(Ops& ops, const ParameterTable& table, uint64_t seed, const Tensor& params, Optimizer& optimizer);

RunState read_state(const CheckpointReader& reader);

// Fills this rank's shards of all parameters, on any device. Throws UserError where the names or shapes of the
// checkpoint's tensors are not those of the table: it is of another model.
void load_params(const CheckpointReader& reader, const ParameterTable& table, const Tensor& params);
// Fills the optimizer's state of owned rows.
void load_optimizer(const CheckpointReader& reader, const ParameterTable& table, Optimizer& optimizer);

}  // namespace tmamba
