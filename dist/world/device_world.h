// Selects the device that a rank computes on and creates the communicator of all ranks for tensors on it. There are two
// implementations, with NCCL (device_world.cpp) and for builds without CUDA (no_nccl.cpp); CMake selects one.
#pragma once

#include <memory>
#include <string>

#include "dist/world/world.h"

namespace tmamba {

// Index of the rank's GPU among the `visible` ones of its process. A launcher may make all GPUs of the host visible to
// each rank, or only one.
constexpr int gpu_of(int local_rank, int visible) { return local_rank % visible; }

// The version of the NCCL library in use, such as "2.27.5"; empty in a build without NCCL.
std::string nccl_version();

// Selects this rank's GPU by its local rank; must precede every allocation on it. Does nothing for Device::cpu.
// Collective. Throws UserError on all ranks if a host has no GPU or fewer GPUs than ranks, and in a build without CUDA.
void select_device(World& world, Device device);

// Creates the communicator of all ranks for tensors on `device`; a single rank gets a SelfCommunicator. Collective,
// after select_device. It may be destroyed after it was split. `compute` is the stream that produces and consumes the
// tensors (Ops::native_stream); null for the default stream.
std::unique_ptr<Communicator> make_device_communicator(World& world, Device device, void* compute = nullptr);

}  // namespace tmamba
