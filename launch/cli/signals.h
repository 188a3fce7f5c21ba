// SIGINT, SIGTERM, SIGHUP and SIGUSR1 ask for a checkpoint at the next step boundary and a stop (exit code 85). SIGHUP
// stays ignored where it was ignored at the start (nohup).
// SIGXFSZ is ignored, so that a write over a file size limit fails with an error.
#pragma once

#include <cstdint>

namespace tmamba {

void install_signal_handlers();
// For verbs that have nothing to save or clean up: the same signals end the process at once with exit code 1.
void exit_on_signals();
// The process id of the Open MPI mpirun that started this process; 0: started otherwise, or on another host.
int64_t open_mpi_launcher();
// The last of these signals that arrived, or 0.
int pending_signal();
// Name of a signal, "SIGTERM".
const char* signal_name(int signal);

}  // namespace tmamba
