// SIGINT, SIGTERM and SIGUSR1 ask for a checkpoint at the next step boundary and a stop (exit code 85).
// SIGXFSZ is ignored: the write that it stands for fails.
#pragma once

#include <cstdint>

namespace tmamba {

void install_signal_handlers();
// The process of Open MPI's mpirun that has started this one; 0: it was started by something else, or on another host.
int64_t open_mpi_launcher();
// The last of them that arrived, or 0.
int pending_signal();
// Name of a signal, "SIGTERM".
const char* signal_name(int signal);

}  // namespace tmamba
