// Checks that all replicas of the weights have the same bits (train.replica_check_every). Silent data corruption in one
// replica would persist there and spread through the gradients of that rank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/comm/communicator.h"
#include "dist/world/mesh.h"
#include "model/parameters.h"

namespace tmamba {

// Ranks with the same tensor-parallel coordinate hold the same weights. Throws Error on all ranks, naming the ranks
// that differ from the majority. Collective over `world`.
void check_replicas(Communicator& world, const MeshShape& shape, const std::vector<std::string>& hosts,
                    const ParameterTable& table, const Tensor& params, int64_t step);

}  // namespace tmamba
