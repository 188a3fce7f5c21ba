// The world of a test program under mpirun; mpi_main.cpp has its main().
#pragma once

#include "dist/world/world.h"

namespace tmamba {

World& test_world();

// Where the communicator under test works: host_tensors.cpp or device_tensors.cpp, whichever is linked.
Device test_device();
// All ranks, for tensors there.
Communicator& test_comm();

}  // namespace tmamba
