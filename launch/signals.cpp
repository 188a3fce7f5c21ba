#include "launch/signals.h"

#include <csignal>
#include <initializer_list>

namespace tmamba {

namespace {
volatile std::sig_atomic_t g_signal = 0;
void remember(int signal) { g_signal = signal; }
}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);
  // A file over a size limit is then a failed write like any other, which a run survives.
  std::signal(SIGXFSZ, SIG_IGN);
}

int pending_signal() { return g_signal; }

const char* signal_name(int signal) {
  switch (signal) {
    case SIGINT:
      return "SIGINT";
    case SIGTERM:
      return "SIGTERM";
    case SIGUSR1:
      return "SIGUSR1";
    default:
      return "signal";
  }
}

}  // namespace tmamba
