// Running another program to its end. No shell: arguments reach it unchanged.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace tmamba {

struct ChildEnd {
  int exit_code = 0;       // 128 + signal if a signal ended it
  bool timed_out = false;  // it was terminated because its time was up
  bool stopped = false;    // it was terminated because a signal asked this process to stop (signals.h)
  std::string text;        // captured standard output and error
};

struct ChildSpec {
  std::vector<std::string> command;                     // the program is found on PATH
  std::filesystem::path output = {}, errors = {};       // files; without `output` both are captured in ChildEnd::text
  std::map<std::string, std::string> environment = {};  // added to this process's own
  double timeout = 0;                                   // seconds; 0: none
};

// Runs it in a process group of its own, which gets SIGTERM, and 10 s later SIGKILL, when time is up or, unless its
// output is captured, when this process is asked to stop. The child does not outlive this process. Throws UserError if
// the program cannot be started.
ChildEnd run_child(const ChildSpec& spec);

// The path of a program on PATH; empty if it is not there.
std::string find_program(const std::string& name);

// The file of this program.
std::string own_program();

// The command as one line for a POSIX shell, with words quoted where necessary.
std::string shell_line(const std::vector<std::string>& command);

}  // namespace tmamba
