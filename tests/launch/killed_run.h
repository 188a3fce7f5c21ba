// A run that was killed, went on, and was stopped by a switch file: what the tests of the ledger, the TensorBoard files
// and the report look at. Made once per program.
#pragma once

#include <filesystem>
#include <string>

namespace tmamba {

struct KilledRun {
  std::filesystem::path folder;  // the test's folder; the run is in `run`, its Prometheus file is run.prom
  double seconds = 0;            // between the first launch and the end of the last one
  std::string output;            // of the second start
  int code = -1;                 // of the second start
};

const KilledRun& killed_run();

}  // namespace tmamba
