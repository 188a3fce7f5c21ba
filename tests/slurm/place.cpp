// Prints, in the order of ranks: rank, node, local rank, ranks of the node, the GPU it would take.
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "dist/world/device_world.h"
#include "dist/world/world.h"

namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

// The host's GPU that a rank takes of those it is shown: CUDA counts the visible ones from 0.
std::string own_gpu(int local_rank) {
  std::istringstream list(variable("CUDA_VISIBLE_DEVICES"));
  std::vector<std::string> visible;
  for (std::string gpu; std::getline(list, gpu, ',');) visible.push_back(gpu);
  if (visible.empty()) return "none";
  return visible[static_cast<size_t>(tmamba::gpu_of(local_rank, static_cast<int>(visible.size())))];
}

}  // namespace

int main() {
  return tmamba::run_main([](tmamba::World& world) {
    for (int rank = 0; rank < world.size(); ++rank) {
      if (rank == world.rank()) {
        std::printf("%d %s %d %d %s\n", rank, variable("SLURMD_NODENAME").c_str(), world.local_rank(),
                    world.local_size(), own_gpu(world.local_rank()).c_str());
        std::fflush(stdout);
      }
      world.comm().barrier();
    }
    return 0;
  });
}
