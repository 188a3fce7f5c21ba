// The world of a test program under mpirun; mpi_main.cpp has its main().
#pragma once

#include "dist/world.h"

namespace tmamba {

World& test_world();

}  // namespace tmamba
