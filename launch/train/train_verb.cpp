#include <cstdio>

#include "dist/world/world.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
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
        "Trains a model. Started by mpirun or srun, the ranks share the work by the keys of [parallel]. The run\n"
        "resumes from the latest complete checkpoint of its run directory. SIGINT, SIGTERM, SIGUSR1 or a file STOP\n"
        "in the run directory: the run saves at the next step boundary and stops with exit code 85. A file SAVE: it\n"
        "saves and continues. Under Open MPI's mpirun use STOP, or kill -USR1 of mpirun, which forwards it to all\n"
        "ranks: on SIGINT (Ctrl-C) and SIGTERM it kills them a second later. Exit code 93: three attempts in a row\n"
        "made no newer checkpoint, or another attempt took over the run directory. --json prints the run's summary\n"
        "as JSON at the end.");
    command.options()("set", po::value<std::vector<std::string>>(), "override a key: --set train.lr=3e-4 (repeatable)")(
        "compare", po::value<std::vector<std::string>>(),
        "NAME=BITS: add a row to the final table, bits per byte of another method on the same text (repeatable)")(
        "check",
        "make the checks that need no allocation (configuration, data, layout on these ranks, memory), print the "
        "effective configuration and stop");
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
  Command command("explain [KEY]", "Prints the meaning and the default of every configuration key, or of one key.");
  command.positional("key");
  if (!command.parse(arguments)) return kDone;
  std::printf("%s", explain_keys(command.has("key") ? command.required("key") : "").c_str());
  return kDone;
}

}  // namespace tmamba
