// AdamW on the rows of parameters that this rank owns, and the learning-rate schedule (spec.md section 7). Knows no
// ranks.
#pragma once

#include <span>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "kernels/ops/step_scalars.h"
#include "model/parameters.h"

namespace tmamba {

// Rows [begin, begin + rows) of a local parameter.
struct OwnedRows {
  const Parameter* parameter;
  int64_t begin, rows;
};

// Every row of every parameter: what one rank owns where optimizer states are not sharded.
std::vector<OwnedRows> all_rows(const ParameterTable& table);

class Optimizer {
 public:
  // State of `owned`, zero-filled; where the parameters' type is not the accumulate type, master copies too.
  Optimizer(std::vector<OwnedRows> owned, DType param_dtype, Device device);

  // Updates the state and the owned rows of `params` (a flat buffer of a ParameterTable). gradients[i] [acc] is that of
  // owned()[i], in the shape of m(i). step_S: a
  // StepScalars.
  void step(Ops& ops, const Tensor& params, std::span<const Tensor> gradients, const AdamwRule& rule,
            const ConstTensor& step_S);

  // Sets the master copies from a flat buffer of any floating type, as at the start of a run.
  void reset_master(Ops& ops, const Tensor& params);

  const std::vector<OwnedRows>& owned() const { return owned_; }
  bool has_master() const { return has_master_; }
  // The state of owned()[i], [rows, cols] or [rows].
  Tensor m(size_t i) const { return state(0, i); }
  Tensor v(size_t i) const { return state(1, i); }
  Tensor master(size_t i) const { return state(2, i); }
  // The owned rows of a flat buffer, in the shape of m(i).
  static Tensor rows_of(const Tensor& flat, const OwnedRows& owned);
  int64_t state_bytes() const { return static_cast<int64_t>(state_.bytes()); }

 private:
  Tensor state(int64_t kind, size_t i) const;

  std::vector<OwnedRows> owned_;
  std::vector<int64_t> offset_;  // of owned_[i] in each kind of state
  bool has_master_;
  DType acc_;
  int64_t size_ = 0;
  Buffer state_;  // m, v, and master where it is kept
};

struct LearningRate {
  double peak = 2.5e-4, min = 2.5e-5;
  int64_t warmup = 0, steps = 1;

  // Linear from 0 to peak over `warmup` steps, then a cosine to `min` at `steps`. Steps count from 1.
  double at(int64_t step) const;
};

// The scalars of one step (from 1) that is applied, on the host.
StepScalars step_scalars(int64_t step, double lr, const AdamwRule& rule, double grad_scale = 1);

}  // namespace tmamba
