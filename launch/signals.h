// SIGINT, SIGTERM and SIGUSR1 ask for a checkpoint at the next step boundary and a stop (exit code 85).
// SIGXFSZ is ignored: the write that it stands for fails.
#pragma once

namespace tmamba {

void install_signal_handlers();
// The last of them that arrived, or 0.
int pending_signal();
// Name of a signal, "SIGTERM".
const char* signal_name(int signal);

}  // namespace tmamba
