// Whether all replicas of the weights are the same bits (train.replica_check_every): a bit that a memory or an adder
// got wrong on one rank lives on there and in everything that rank adds to the gradients.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/world/mesh.h"
#include "model/parameters.h"

namespace tmamba {

// Ranks with the same tensor-parallel coordinate hold the same weights. Collective over `world`; throws Error on all
// ranks alike, naming the ranks that differ from most others.
void check_replicas(Communicator& world, const MeshShape& shape, const std::vector<std::string>& hosts,
                    const ParameterTable& table, const Tensor& params, int64_t step);

}  // namespace tmamba
