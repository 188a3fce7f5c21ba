#include "tests/launch/killed_run.h"

#include <chrono>

#include "kernels/base/clock.h"
#include "tests/launch/program.h"

namespace tmamba {

namespace {

KilledRun make() {
  KilledRun run{.folder = enter_test_folder("killed-run"), .output = ""};
  prepare_bytes(100000);
  write_config("run.toml",
               "steps = 100000\nglobal_batch = 2\neval_every = 25\neval_sequences = 4\nsample_every = 30\n"
               "sample_tokens = 8\n[checkpoint]\nevery = 20");
  const std::string start = command_line("train run.toml --set run.prometheus=run.prom", 0);
  const std::string lines = "$(grep -c '\"loss\"' run/metrics.jsonl 2>/dev/null)";
  const auto begin = std::chrono::steady_clock::now();
  // A limit of 60 s, so that a run that never comes so far is seen.
  const std::string until = "for i in $(seq 1200); do n=" + lines + "; [ \"${n:-0}\" -ge ";
  shell(start + " & job=$!; " + until + "55 ] && break; sleep 0.05; done; kill -9 $job; wait $job; sleep 1.5");
  const Outcome second =
      shell(start + " & job=$!; " + until + "110 ] && break; sleep 0.05; done; touch run/STOP; wait $job");
  run.seconds = seconds_since(begin);
  run.output = second.output;
  run.code = second.code;
  return run;
}

}  // namespace

const KilledRun& killed_run() {
  static const KilledRun run = make();
  return run;
}

}  // namespace tmamba
