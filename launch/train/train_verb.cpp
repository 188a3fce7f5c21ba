#include <cstdio>

#include "dist/world/world.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/signals.h"
#include "launch/run/rank_agreement.h"
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
        "resumes from the latest complete checkpoint of its run directory. SIGINT, SIGTERM, SIGHUP, SIGUSR1 or a file\n"
        "STOP in the run directory: the run saves at the next step boundary and stops with exit code 85. A file SAVE:\n"
        "it saves and continues. Under Open MPI's mpirun use STOP, or kill -USR1 of mpirun, which forwards it to all\n"
        "ranks: on SIGINT (Ctrl-C), SIGTERM and SIGHUP it kills them a second later. One attempt at a time trains in\n"
        "a run directory: another job waits up to 30 s for the heartbeat of the one before. Exit code 93: that one is\n"
        "alive, or took over later, or three attempts in a row made no newer checkpoint. --json prints the run's\n"
        "summary as JSON at the end.");
    command.options()("set", po::value<std::vector<std::string>>(), "override a key: --set train.lr=3e-4 (repeatable)")(
        "compare", po::value<std::vector<std::string>>(),
        "NAME=BITS: add a row to the final table, bits per byte of another method on the same text (repeatable)")(
        "check",
        "make the checks that need no allocation (configuration, data, layout on these ranks, memory), print the "
        "effective configuration and stop")(
        "take-over",
        "take the run directory over from an attempt that still trains in it: that one ends with exit code 93");
    command.positional("config");
    RunConfig config;
    const bool runs = parse_together(world, "train", command, arguments, [&](RankFacts& facts) {
      config = load_config(command.required("config"), command.list("set"));
      facts.add(config);
    });
    if (!runs) return static_cast<int>(kDone);
    if (command.has("check")) {
      Trainer::check(config, world);
      if (world.rank() == 0) std::printf("%s", to_toml(config).c_str());
      return static_cast<int>(kDone);
    }
    Trainer trainer(config, world, command.has("take-over"));
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
