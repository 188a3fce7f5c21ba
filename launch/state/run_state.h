// What a checkpoint holds of a run, and how it is written and read: parameters, optimizer state, and a small JSON
// state.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"
#include "dist/comm/communicator.h"
#include "launch/config/config.h"
#include "model/optimizer.h"
#include "model/parameters.h"

namespace tmamba {

// Everything but tensors that a run needs to go on from a step.
struct RunState {
  int64_t step = 0;            // optimizer steps taken, skipped ones included
  int64_t tokens = 0;          // tokens consumed
  int64_t skipped = 0;         // steps skipped because of a loss or gradient that is not finite
  double seconds = 0;          // time spent training
  std::string config;          // effective configuration, TOML
  std::string tokenizer_hash;  // of the data trained on
  double bytes_per_token = 0;  // of the training text
  int64_t passed_over = 0;     // sequences that led into trouble and were left out after going back (train.max_skips)
  nlohmann::json guard;        // SpikeGuard::state()
};

// The state as a checkpoint holds it.
nlohmann::json state_json(const RunState& state);

// The rows that this rank saves: those that its optimizer owns, unless another rank has the same ones and writes them:
// all of them (`writes` false), or those of parameters that tensor-parallel ranks all hold whole. `to_host` gives a
// contiguous tensor where the host can read it, unchanged until the save has ended.
std::vector<TensorSlice> run_slices(const ParameterTable& table, const Tensor& params, const Optimizer& optimizer,
                                    bool writes, bool writes_replicated,
                                    const std::function<Tensor(const Tensor&)>& to_host);

// Draws the initial values of a run on the host, in the accumulate type; the optimizer's masters keep what rounding
// takes from `params`.
void initialize_run(Ops& ops, const ParameterTable& table, uint64_t seed, const Tensor& params, Optimizer& optimizer);

RunState read_state(const CheckpointReader& reader);

// Fills this rank's shards of all parameters, on any device. Throws UserError where the checkpoint's tensors are
// not those of the table, or not of their shapes: it is of another model.
void load_params(const CheckpointReader& reader, const ParameterTable& table, const Tensor& params);
// Fills the owned optimizer state.
void load_optimizer(const CheckpointReader& reader, const ParameterTable& table, Optimizer& optimizer);

}  // namespace tmamba
