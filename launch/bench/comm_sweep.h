// Time and bandwidth of the collectives between ranks, by size.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "dist/world/world.h"

namespace tmamba {

struct SweepOptions {
  int64_t min_bytes = 1024, max_bytes = int64_t{64} << 20;
  int64_t factor = 4;                   // ratio of consecutive sizes
  std::vector<std::string> names = {};  // of collectives ("all_reduce"); empty: all
  double seconds = 0;                   // time after which a collective gets no larger size; 0: no limit
};

// [{axis, ranks, exchange, bytes, us, algorithm_gb_per_s, bus_gb_per_s}]: medians of the slowest rank's times. Bytes
// are those of the whole tensor; bus bandwidth (busbw) is defined as in nccl-tests. Collective; every rank returns the
// same.
nlohmann::json sweep(World& world, Communicator& comm, DType dtype, Device device, const SweepOptions& options);

// Formats the rows of sweep() as a table with a header; every line ends with a newline.
std::string sweep_text(const nlohmann::json& rows);

// The default largest size of a sweep: 1 GiB on GPUs, 64 MiB on CPUs.
int64_t largest_sweep_bytes(Device device);

}  // namespace tmamba
