#include "launch/plan/memory_check.h"

#include <algorithm>
#include <vector>

#include "dist/planner/plan_text.h"
#include "kernels/base/device.h"
#include "launch/cli/format.h"
#include "launch/plan/plan_memory.h"

namespace tmamba {

namespace {

// Bytes that this rank may allocate. A fiftieth of a GPU's memory stays free for the workspaces of its kernels, which
// grow in the first step.
int64_t available(const RunConfig& config, Device device, const World& world) {
  if (config.run.memory_limit > 0) return static_cast<int64_t>(config.run.memory_limit * kGiB);
  const DeviceMemory memory = device_memory(device);
  const auto free = static_cast<int64_t>(std::min<size_t>(memory.free, INT64_MAX));
  if (device == Device::cpu) return free / world.local_size();
  return free - static_cast<int64_t>(memory.total / 50);
}

// By rank: the bytes needed and available.
std::vector<int64_t> known_to_all(Communicator& comm, int64_t needed, int64_t free) {
  int64_t mine[2] = {needed, free};
  std::vector<int64_t> all(2 * static_cast<size_t>(comm.size()));
  const std::vector<int64_t> counts(static_cast<size_t>(comm.size()), 2);
  comm.all_gather(Tensor(all.data(), {std::ssize(all)}, DType::i64), ConstTensor(mine, {2}, DType::i64), counts).wait();
  return all;
}

// Bytes that a rank needs of its device's memory; on a CPU that includes the host's.
int64_t on(Device device, const RankMemory& memory) {
  return memory.total() + (device == Device::cpu ? memory.host_copy : 0);
}

// With GPUs: throws if the host has too little memory for the copies that checkpoints are written from.
void require_host_memory(const RankMemory& mine, World& world) {
  const auto free = static_cast<int64_t>(std::min<size_t>(device_memory(Device::cpu).free, INT64_MAX));
  const std::vector<int64_t> all = known_to_all(world.comm(), mine.host_copy, free / world.local_size());
  for (int rank = 0; rank < world.size(); ++rank) {
    const int64_t needed = all[2 * static_cast<size_t>(rank)], there = all[2 * static_cast<size_t>(rank) + 1];
    if (needed <= there) continue;
    throw UserError(str("this run does not fit: rank ", rank, " saves from a copy of ", bytes_text(needed),
                        " in host memory, of which ", bytes_text(there),
                        " are free for it: ", bytes_text(needed - there),
                        " short; use more ranks that share the optimizer's state "
                        "(parallel.zero = 1), fewer ranks on a host, or hosts with more memory"));
  }
}

}  // namespace

void require_memory(const RunConfig& config, const RunPlan& plan, Device device, World& world) {
  const MeshShape shape{plan.dims.tp, plan.dims.sp, plan.dims.dp};
  const RankMemory mine = rank_memory(config, plan, shape.coordinates(world.rank()));
  if (device != Device::cpu) require_host_memory(mine, world);
  const std::vector<int64_t> all = known_to_all(world.comm(), on(device, mine), available(config, device, world));
  const auto short_of = [&](int rank) {
    return all[2 * static_cast<size_t>(rank)] - all[2 * static_cast<size_t>(rank) + 1];
  };
  int worst = 0;
  for (int rank = 1; rank < world.size(); ++rank) {
    if (short_of(rank) > short_of(worst)) worst = rank;
  }
  if (short_of(worst) <= 0) return;
  const MeshCoordinates at = shape.coordinates(worst);
  const RankMemory memory = rank_memory(config, plan, at);
  const int64_t free = on(device, memory) - short_of(worst);
  const auto needed = [&](Recompute level, int64_t batch) {
    RunPlan other = plan;
    other.dims.recompute = level, other.dims.batch = batch;
    return static_cast<double>(on(device, rank_memory(config, other, at)));
  };
  throw UserError(
      str("this run does not fit: rank ", worst, " needs ", bytes_text(on(device, memory)), " (parameters ",
          bytes_text(memory.parameters), ", gradients ", bytes_text(memory.gradients), ", optimizer ",
          bytes_text(memory.optimizer), ", activations ", bytes_text(memory.saved), ", temporaries ",
          bytes_text(memory.scratch),
          device == Device::cpu && memory.host_copy > 0
              ? str(", copy for asynchronous checkpoints ", bytes_text(memory.host_copy), " (checkpoint.async)")
              : "",
          "), ",
          config.run.memory_limit > 0
              ? str("run.memory_limit allows ", bytes_text(free))
              : str(bytes_text(free), " of its ", device == Device::cpu ? "host" : "GPU", " are free"),
          ": ", bytes_text(short_of(worst)), " short; ",
          memory_advice(plan.dims.recompute, plan.dims.batch, static_cast<double>(free), needed)));
}

}  // namespace tmamba
