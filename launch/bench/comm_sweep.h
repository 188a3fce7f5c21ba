// Time and bandwidth of exchanges between ranks, by size.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "dist/world/world.h"

namespace tmamba {

struct SweepOptions {
  int64_t min_bytes = 1024, max_bytes = int64_t{64} << 20;
  int64_t factor = 4;                   // between sizes
  std::vector<std::string> names = {};  // of exchanges ("all_reduce"); empty: all
  double seconds = 0;                   // no larger size after this long with an exchange; 0: all sizes
};

// [{axis, ranks, exchange, bytes, us, algorithm_gb_per_s, bus_gb_per_s}]: medians, of the slowest rank. Bytes are those
// of the whole tensor; bus bandwidth is what each link of a ring carries. Collective; every rank gets the same.
nlohmann::json sweep(World& world, Communicator& comm, DType dtype, Device device, const SweepOptions& options);

}  // namespace tmamba
