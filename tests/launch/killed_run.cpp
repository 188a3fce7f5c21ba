#include "tests/launch/killed_run.h"

#include <chrono>

#include "tests/launch/program.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

KilledRun make() {
  KilledRun run{.folder = enter_test_folder("killed-run"), .output = ""};
  prepare_bytes(100000);
  write_config("run.toml",
               "steps = 100000\nglobal_batch = 2\neval_every = 25\neval_sequences = 4\nsample_every = 30\n"
               "sample_tokens = 8\n[checkpoint]\nevery = 20");
  const std::string train = "train run.toml --set run.prometheus=run.prom";
  // Killed after it has logged a step: not in the middle of replacing its Prometheus file.
  beside(train, 0,
         "until_ '[ $(steps) -ge 55 ] && [ $(events checkpoint) -ge 1 ]'; hold 1; held; kill -KILL $job; wait $job; "
         "sleep 1.5");
  const auto begin = fs::last_write_time("faults/begun");
  const Outcome second = beside(
      train, 0,
      "until_ '[ $(events resume) -ge 1 ]'; last=$(($(steps) + 90)); until_ '[ $(steps) -ge $last ]'; touch run/STOP");
  run.seconds = std::chrono::duration<double>(fs::last_write_time("run/events.jsonl") - begin).count();
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
