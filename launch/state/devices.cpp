#include "launch/state/devices.h"

#include "dist/world/device_world.h"
#include "dist/zero/zero_sharding.h"
#include "kernels/ops/canonical_ops.h"

namespace tmamba {

std::unique_ptr<Ops> ops_of(const RunConfig& config, World& world) {
  validate_dtype(config);
  select_device(world, config.run.device);
  return make_ops(config.run.device);
}

std::unique_ptr<Ops> training_ops(const RunConfig& config, World& world, int64_t micro_batches) {
  std::unique_ptr<Ops> ops = ops_of(config, world);
  if (config.run.canonical == 0) return ops;
  // The canonical mode has no tensor parallelism: every rank is a replica.
  const ZeroSharding sharding(config.parallel.zero, world.size());
  return make_canonical_ops(std::move(ops), {.unit = config.data.seq_len / config.run.canonical,
                                             .summands = sharding.summands(micro_batches)});
}

namespace {

// A tensor of the sizes of x at the start of a buffer.
Tensor like(const Tensor& x, const Buffer& buffer) {
  return x.dims() == 1 ? buffer.tensor({x.size(0)}, x.dtype()) : buffer.tensor({x.size(0), x.size(1)}, x.dtype());
}

}  // namespace

void fill_from_host(const Tensor& x, const std::function<void(const Tensor&)>& fill) {
  if (x.device() == Device::cpu) return fill(x);
  const Buffer buffer(static_cast<size_t>(x.bytes()), Device::cpu);
  fill(like(x, buffer));
  copy_blocking(x, like(x, buffer));
}

void copy_from_host(Ops& ops, const Tensor& flat, const ConstTensor& host) {
  const Buffer staged({host.numel()}, host.dtype(), ops.device());
  const Tensor staged_flat = staged.tensor({host.numel()}, host.dtype());
  copy_blocking(staged_flat, host);
  ops.copy({flat, staged_flat});
  ops.synchronize();
}

}  // namespace tmamba
