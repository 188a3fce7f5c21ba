#include "dist/world/device_world.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

#include "dist/comm/nccl_communicator.h"
#include "dist/comm/self_communicator.h"

namespace tmamba {

namespace {

// The GPU that a rank has selected; exchanged among all ranks.
struct Choice {
  int32_t visible = 0;  // GPUs this rank sees
  int32_t status = cudaSuccess;
  std::array<char, 16> uuid{};
};
static_assert(sizeof(Choice) == 24);

Choice choose(int local_rank) {
  Choice choice;
  int count = 0;
  choice.status = cudaGetDeviceCount(&count);
  if (choice.status != cudaSuccess || count == 0) {
    cudaGetLastError();
    return choice;
  }
  choice.visible = count;
  const int device = gpu_of(local_rank, count);
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties", str("GPU ", device));
  std::memcpy(choice.uuid.data(), properties.uuid.bytes, choice.uuid.size());
  return choice;
}

// Every rank checks the choices of all ranks, so all throw the same error.
void check_choices(const std::vector<Choice>& choices, const std::vector<std::string>& hosts) {
  struct Host {
    int ranks = 0;
    std::set<std::array<char, 16>> gpus;
  };
  std::map<std::string, Host> by_host;
  for (size_t rank = 0; rank < choices.size(); ++rank) {
    const Choice& choice = choices[rank];
    if (choice.visible == 0) {
      const auto status = static_cast<cudaError_t>(choice.status);
      throw UserError(str("rank ", rank, " on ", hosts[rank], ": no usable NVIDIA GPU (",
                          status != cudaSuccess ? cudaGetErrorString(status) : "none found",
                          "); set run.device = \"cpu\" to run without one"));
    }
    Host& host = by_host[hosts[rank]];
    ++host.ranks;
    host.gpus.insert(choice.uuid);
  }
  for (const auto& [name, host] : by_host) {
    const auto gpus = static_cast<int>(host.gpus.size());
    if (host.ranks <= gpus) continue;
    throw UserError(str(name, ": ", host.ranks, " ranks for ", gpus, gpus == 1 ? " GPU" : " GPUs", "; start at most ",
                        gpus, gpus == 1 ? " rank" : " ranks", " on this host, or set run.device = \"cpu\""));
  }
}

}  // namespace

std::string nccl_version() {
  int version = 0;
  check_nccl(ncclGetVersion(&version), "ncclGetVersion", "reading NCCL's version");
  return str(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

void select_device(World& world, Device device) {
  if (device == Device::cpu) return;
  Choice own = choose(world.local_rank());
  std::vector<Choice> all(static_cast<size_t>(world.size()));
  const std::vector<int64_t> counts(all.size(), sizeof own);
  const auto bytes = static_cast<int64_t>(sizeof own * all.size());
  world.comm().all_gather(Tensor(all.data(), {bytes}, DType::u8), Tensor(&own, {sizeof own}, DType::u8), counts).wait();
  check_choices(all, world.hosts());
  check_cuda(cudaSetDevice(gpu_of(world.local_rank(), own.visible)), "cudaSetDevice",
             str("rank ", world.rank(), " on ", world.host()));
}

std::unique_ptr<Communicator> make_device_communicator(World& world, Device device, void* compute) {
  if (device == Device::cpu) return world.comm().split(0, world.rank(), "all");
  if (world.size() == 1) return std::make_unique<SelfCommunicator>("all");
  // NVLink multicast (NVLS) reduces inside the switch in its own order, and it can put shared GPUs out of service. A
  // user can enable it with the variable.
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
  auto runtime =
      std::make_shared<NcclRuntime>(str("rank ", world.rank(), " on ", world.host()), world.watchdog(),
                                    compute == nullptr ? cudaStreamLegacy : static_cast<cudaStream_t>(compute));
  return std::make_unique<NcclCommunicator>(world.comm().split(0, world.rank(), "all (host)"), "all", world.rank(),
                                            std::move(runtime));
}

}  // namespace tmamba
