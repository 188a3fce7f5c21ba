// A run that was killed, resumed, and stopped by a switch file. The tests of goodput, TensorBoard files and the report
// read it. Made once per program.
#pragma once

#include <filesystem>
#include <string>

namespace tmamba {

struct KilledRun {
  std::filesystem::path folder;  // the test folder; the run directory is `run`, its Prometheus file run.prom
  double seconds = 0;            // from the first launch to the last event
  std::string output;            // of the second attempt
  int code = -1;                 // of the second attempt
};

const KilledRun& killed_run();

}  // namespace tmamba
