#include <cstdio>

#include "dist/world/world.h"
#include "launch/cli/command.h"
#include "launch/cli/signals.h"
#include "launch/train/trainer.h"
#include "launch/verbs.h"

namespace tmamba {

namespace po = boost::program_options;

int train_verb(const Arguments& arguments) {
  install_signal_handlers();
  return run_main([&](World& world) {
    Command command(
        "train CONFIG [options]",
        "Trains a model. Started by mpirun or srun, the ranks share the work as [parallel] says. The run resumes by\n"
        "itself from the newest whole checkpoint of its folder; SIGINT, SIGTERM, SIGUSR1 and a file STOP in the run\n"
        "folder save at the next step boundary and stop with exit code 85; a file SAVE saves and goes on. Under Open\n"
        "MPI's mpirun take STOP, or kill -USR1 of mpirun, which hands it on to all ranks: on SIGINT (Ctrl-C) and\n"
        "SIGTERM it kills them a second later. Exit code 93: three starts in a row made no newer checkpoint, or\n"
        "another start took over the run folder. --json prints the run's summary as JSON at the end.");
    command.options()("set", po::value<std::vector<std::string>>(), "override a key: --set train.lr=3e-4 (repeatable)")(
        "compare", po::value<std::vector<std::string>>(),
        "NAME=BITS: a row of the final table, bits per byte of another method on the same text (repeatable)")(
        "check",
        "check all that is checked before anything is allocated - configuration, data, layout on these ranks, memory - "
        "print the effective configuration and stop");
    command.positional("config");
    if (!command.parse(arguments, world.rank() == 0)) return static_cast<int>(kDone);
    const RunConfig config = load_config(command.required("config"), command.list("set"));
    if (command.has("check")) {
      Trainer::check(config, world);
      if (world.rank() == 0) std::printf("%s", to_toml(config).c_str());
      return static_cast<int>(kDone);
    }
    Trainer trainer(config, world);
    trainer.start_watchdog();
    const int code = trainer.run();
    if (code == kDone && world.rank() == 0) trainer.print_summary(command.list("compare"), command.json());
    return code;
  });
}

int explain_verb(const Arguments& arguments) {
  Command command("explain [KEY]", "What every configuration key means, with its default; or one key.");
  command.positional("key");
  if (!command.parse(arguments)) return kDone;
  std::printf("%s", explain_keys(command.has("key") ? command.required("key") : "").c_str());
  return kDone;
}

}  // namespace tmamba
