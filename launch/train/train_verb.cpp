#include <cstdio>

#include "dist/world/world.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/signals.h"
#include "launch/run/rank_agreement.h"
#include "launch/train/trainer.h"
#include "launch/verbs.h"

namespace tmamba {

int train_verb(const Arguments& arguments) {
  install_signal_handlers();
  return run_main([&](World& world) {
    Command command("train");
    RunConfig config;
    const bool runs = parse_together(world, "train", command, arguments, [&](RankFacts& facts) {
      config = load_config(command.get<std::string>("config"), command.list("set"));
      facts.add(config);
    });
    if (!runs) return static_cast<int>(kDone);
    if (command.has("check")) {
      Trainer::check(config, world);
      if (world.rank() == 0) std::printf("%s", command.json() ? to_json(config).c_str() : to_toml(config).c_str());
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
  Command command("explain");
  if (!command.parse(arguments)) return kDone;
  std::printf("%s", explain_keys(command.has("key") ? command.get<std::string>("key") : "", command.json()).c_str());
  return kDone;
}

}  // namespace tmamba
