// From a run's configuration to the ops of its device, and tensors between host and device.
#pragma once

#include <functional>
#include <memory>

#include "dist/world/world.h"
#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "launch/config/config.h"

namespace tmamba {

// The ops of run.device, of this rank's own GPU. Throws UserError if the device cannot compute in train.dtype, or if
// this build or machine has no such device or too few. Collective.
std::unique_ptr<Ops> ops_of(const RunConfig& config, World& world);

// The ops of a training run on all ranks of the world with `micro_batches` per step: those of the device, in canonical
// mode (run.canonical) wrapped for it. Collective.
std::unique_ptr<Ops> training_ops(const RunConfig& config, World& world, int64_t micro_batches);

// Calls fill(x) if the host can write x, else fill(a tensor on the host), which it copies to x. x is contiguous with
// one or two dimensions.
void fill_from_host(const Tensor& x, const std::function<void(const Tensor&)>& fill);

// Copies a host buffer's elements to `flat`, which may be on another device and of another floating type.
void copy_from_host(Ops& ops, const Tensor& flat, const ConstTensor& host);

}  // namespace tmamba
