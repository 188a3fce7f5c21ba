// Runs a piece of code in a child process and watches its system calls on files (Linux on x86-64): to end it, or to
// make one call fail, at any of them, and to know in which order they came.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace tmamba {

struct FileCall {
  std::string name;   // "openat", "pwrite64", ...
  std::string path;   // the file, also where the call has a descriptor only
  std::string path2;  // of a rename: the new name
  bool creates = false;
  long result = 0;
};

struct TraceOptions {
  int kill_at = -1;     // ends the child before its n'th call
  int fail_at = -1;     // the n'th call is not made and fails
  int error = 0;        // with this errno
  bool changes = true;  // count only calls that change files or names: no close, no reading open
};

struct TraceResult {
  int exit_code = -1;  // -1: killed
  std::vector<FileCall> calls;
};

// `body` runs in a forked child; its value is the exit code.
TraceResult trace(const std::function<int()>& body, const TraceOptions& options = {});

}  // namespace tmamba
