// Which device a rank computes on, and the communicator of all ranks for tensors there. Two implementations, one of
// them for builds without CUDA; CMake picks which is built.
#pragma once

#include <memory>

#include "dist/world.h"

namespace tmamba {

// The GPU of a rank, of those it sees: the launcher may show all GPUs of the host to each rank, some, or one to each.
inline int gpu_of(int local_rank, int visible) { return local_rank % visible; }

// Makes one of its host's GPUs this rank's, by local rank, before anything is allocated on it; for Device::cpu there is
// nothing to do. Collective. Throws UserError, on all ranks, where a host has no GPU or fewer than ranks, and in a
// build without CUDA.
void select_device(World& world, Device device);

// All ranks, for tensors on `device`; one rank alone gets a SelfCommunicator. Collective, after select_device. It may
// go once it has been split.
std::unique_ptr<Communicator> make_device_communicator(World& world, Device device);

}  // namespace tmamba
