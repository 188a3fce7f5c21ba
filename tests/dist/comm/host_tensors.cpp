#include "tests/dist/comm/mpi_main.h"

namespace tmamba {

Device test_device() { return Device::cpu; }

}  // namespace tmamba
