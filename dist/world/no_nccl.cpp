// device_world.h in a build without CUDA.
#include "dist/world/device_world.h"

namespace tmamba {

namespace {
void refuse_gpu(Device device) {
  if (device == Device::cpu) return;
  throw UserError("this build has no CUDA and no NCCL; build with -DTMAMBA_CUDA=ON, or set run.device = \"cpu\"");
}
}  // namespace

std::string nccl_version() { return ""; }

void select_device(World&, Device device) { refuse_gpu(device); }

std::unique_ptr<Communicator> make_device_communicator(World& world, Device device, void*) {
  refuse_gpu(device);
  return world.comm().split(0, world.rank(), "all");
}

}  // namespace tmamba
