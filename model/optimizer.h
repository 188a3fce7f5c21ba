// AdamW on the rows of parameters that this rank owns, and the learning-rate schedule (model/SPEC.md section 7). Knows
// no ranks.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "kernels/ops/step_scalars.h"
#include "model/optimizer_options.h"
#include "model/parameters.h"

namespace tmamba {

// Rows [begin, begin + rows) of a local parameter.
struct OwnedRows {
  const Parameter* parameter;
  int64_t begin, rows;

  int64_t elements() const { return rows * parameter->local_cols; }
};

// Every row of every parameter: what one rank owns where optimizer states are not sharded.
std::vector<OwnedRows> all_rows(const ParameterTable& table);

// The least of a parameter that a rank must own together.
enum class OwnershipUnit : uint8_t {
  row,     // the optimizer updates elements or rows independently
  matrix,  // it needs whole logical matrices (Parameter::stored)
};
// The unit in which the optimizer needs a parameter to be owned. AdamW: rows.
OwnershipUnit ownership_unit(const OptimizerOptions& options, const Parameter& parameter);
// Rows of the local parameter in one unit.
int64_t unit_rows(const Parameter& parameter, OwnershipUnit unit);

// How the shape of a state tensor follows from the owned rows [rows, cols].
enum class SlotShape : uint8_t {
  elements,  // one scalar per element
  rows,      // one scalar per row; tensor-parallel ranks that hold columns of a row hold equal scalars
};

// One kind of optimizer state, a tensor beside every range of owned rows. The table of an optimizer's slots is read by
// the optimizer, by checkpoints (optim/NAME/PARAMETER) and by the memory of a planned run.
struct StateSlot {
  std::string name;
  DType dtype;
  SlotShape shape = SlotShape::elements;
  // A copy of the parameters in the accumulate type. A checkpoint of a run without such copies has none: they are then
  // read from the parameters.
  bool master = false;

  int64_t elements(const OwnedRows& owned) const { return shape == SlotShape::rows ? owned.rows : owned.elements(); }
  // Whether every tensor-parallel rank holds the same scalars of this parameter.
  bool replicated_over_tp(const Parameter& parameter) const {
    return parameter.shard == Shard::none || (shape == SlotShape::rows && parameter.shard == Shard::columns);
  }
};

// The slots of the optimizer for parameters of a type; `master` exists where that type is not the accumulate type.
std::vector<StateSlot> optimizer_slots(const OptimizerOptions& options, DType param_dtype);
// Bytes of all slots of some rows.
int64_t state_bytes(std::span<const StateSlot> slots, const OwnedRows& owned);

class Optimizer {
 public:
  // Zero-filled state of `owned`. `slots` begins with optimizer_slots().
  Optimizer(std::vector<OwnedRows> owned, DType param_dtype, Device device, const OptimizerOptions& options = {});
  Optimizer(std::vector<OwnedRows> owned, std::vector<StateSlot> slots, Device device,
            const OptimizerOptions& options = {});

  // The scalars of one step (from 1) that is applied, on the host.
  StepScalars step_scalars(int64_t step, double lr) const;
  // Updates the state and the owned rows of `params` (a flat buffer of a ParameterTable). gradients[i] [acc] is that of
  // owned()[i], in the shape of rows_of(). step_S: step_scalars() on the device, after Ops::check_step.
  void step(Ops& ops, const Tensor& params, std::span<const Tensor> gradients, const ConstTensor& step_S);

  // Sets the master copies from a flat buffer of any floating type, as at the start of a run.
  void reset_master(Ops& ops, const Tensor& params);

  const std::vector<OwnedRows>& owned() const { return owned_; }
  const std::vector<StateSlot>& slots() const { return slots_; }
  // The state of owned()[i] in a slot: [rows, cols] or [rows].
  Tensor state(size_t slot, size_t i) const;
  // The owned rows of a flat buffer, [rows, cols] or [rows].
  static Tensor rows_of(const Tensor& flat, const OwnedRows& owned);
  int64_t state_bytes() const;

 private:
  std::vector<OwnedRows> owned_;
  std::vector<StateSlot> slots_;
  OptimizerOptions options_;
  struct Storage {
    Buffer buffer;
    std::vector<int64_t> offset;  // of owned_[i]
    int64_t size = 0;
  };
  std::vector<Storage> storage_;  // of each slot
};

struct LearningRate {
  double peak = 2.5e-4, min = 2.5e-5;
  double warmup = 0, end = 1;

  // Linear from 0 to peak over `warmup`, then a cosine to `min` at `end`. Positions are steps, counted from 1, or
  // tokens in units of a step.
  double at(double position) const;
};

}  // namespace tmamba
