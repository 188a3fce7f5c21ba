// Running another program and reading what it prints. No shell: arguments reach it as they are.
#pragma once

#include <string>
#include <vector>

namespace tmamba {

struct ProgramOutput {
  int code = 0;      // its exit code, or 128 + the signal that ended it
  std::string text;  // its standard output and error together
};

// Where PATH has this program; empty: nowhere.
std::string find_program(const std::string& name);

// The file of this program.
std::string own_program();

// Runs arguments[0], found by PATH, and waits for it. Throws Error where it cannot be started.
ProgramOutput run_program(const std::vector<std::string>& arguments);

}  // namespace tmamba
