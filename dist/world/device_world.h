// Which device a rank computes on, and the communicator of all ranks for tensors there. Two implementations, one of
// them for builds without CUDA; CMake picks which is built.
#pragma once

#include <memory>
#include <string>

#include "dist/world/world.h"

namespace tmamba {

// Which of the `visible` GPUs of its process is a rank's: a launcher may show all GPUs of the host to each rank, or one
// to each.
constexpr int gpu_of(int local_rank, int visible) { return local_rank % visible; }

// The NCCL that this program runs with, "2.27.5"; empty in a build without it.
std::string nccl_version();

// Makes one of its host's GPUs this rank's, by local rank, before anything is allocated on it; for Device::cpu there is
// nothing to do. Collective. Throws UserError, on all ranks, where a host has no GPU or fewer than ranks, and in a
// build without CUDA.
void select_device(World& world, Device device);

// All ranks, for tensors on `device`; one rank alone gets a SelfCommunicator. Collective, after select_device. It may
// go once it has been split. `compute`: the stream that makes and takes what is exchanged (Ops::native_stream), null
// for the default stream.
std::unique_ptr<Communicator> make_device_communicator(World& world, Device device, void* compute = nullptr);

}  // namespace tmamba
