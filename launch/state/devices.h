// From a run's configuration to the ops of its device, and tensors between host and device.
#pragma once

#include <functional>
#include <memory>

#include "dist/world/world.h"
#include "kernels/base/buffer.h"
#include "kernels/ops/ops.h"
#include "launch/config/config.h"

namespace tmamba {

// The ops of run.device: of this rank's own GPU where `world` is given (collective then), else of the first. Throws
// UserError where the device cannot compute in train.dtype, and where this build or this machine has no such device or
// too few.
std::unique_ptr<Ops> ops_of(const RunConfig& config, World* world = nullptr);

// The ops of a training run of all ranks of the world with `micro_batches` a step: those of the device, canonical where
// run.canonical says so. Collective.
std::unique_ptr<Ops> training_ops(const RunConfig& config, World& world, int64_t micro_batches);

// Calls fill(x) where the host can write x, else fill(a tensor on the host) and copies that to x. Contiguous, one or
// two dimensions.
void fill_from_host(const Tensor& x, const std::function<void(const Tensor&)>& fill);

// A host buffer's elements in `flat`, which may be on another device and of another floating type.
void copy_from_host(Ops& ops, const Tensor& flat, const ConstTensor& host);

}  // namespace tmamba
