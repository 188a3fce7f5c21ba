// Another program, run to its end.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace tmamba {

struct ChildEnd {
  int exit_code = 0;       // 128 + signal where one ended it
  bool timed_out = false;  // and was ended for it
  bool stopped = false;    // a signal asked this process to stop (signals.h), and it passed that on
};

struct ChildSpec {
  std::vector<std::string> command;  // found on PATH
  std::filesystem::path output, errors;
  std::map<std::string, std::string> environment = {};  // beside this process's own
  double timeout = 0;                                   // seconds; 0: none
};

// Runs it in a process group of its own, which gets SIGTERM, and 10 s later SIGKILL, when time is up or this process is
// asked to stop; it does not outlive this process. Throws UserError where the program cannot be started.
ChildEnd run_child(const ChildSpec& spec);

// The command as one line for a POSIX shell, every word quoted that needs it.
std::string shell_line(const std::vector<std::string>& command);

}  // namespace tmamba
