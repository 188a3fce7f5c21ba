#include "launch/cli/signals.h"

#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <string>

#include "kernels/base/check.h"
#include "launch/cli/exit_code.h"

namespace tmamba {

namespace {
volatile std::sig_atomic_t g_signal = 0;
volatile std::sig_atomic_t g_exit = 0;  // whether a signal ends the process

void remember(int signal) {
  g_signal = signal;
  if (g_exit == 0) return;
  for (const char* text : {"transmamba: stopped by ", signal_name(signal), "\n"}) {
    if (write(STDERR_FILENO, text, std::strlen(text)) < 0) break;
  }
  _exit(kFailed);
}
}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);
  struct sigaction before {};
  sigaction(SIGHUP, nullptr, &before);
  if (before.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // nohup: it lives on
  std::signal(SIGXFSZ, SIG_IGN);
}

void exit_on_signals() {
  g_exit = 1;
  install_signal_handlers();
}

int64_t open_mpi_launcher() {
  if (std::getenv("OMPI_COMM_WORLD_RANK") == nullptr) return 0;
  std::ifstream file(str("/proc/", getppid(), "/comm"));
  std::string name;
  std::getline(file, name);
  for (const char* known : {"mpirun", "mpiexec", "orterun"}) {
    if (name.starts_with(known)) return getppid();
  }
  return 0;
}

int pending_signal() { return g_signal; }

const char* signal_name(int signal) {
  switch (signal) {
    case SIGHUP:
      return "SIGHUP";
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
