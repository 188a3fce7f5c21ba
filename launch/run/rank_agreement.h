// Ranks must agree: what every rank of a job reads for itself (arguments, configuration, data, program, environment) is
// compared once, before anything is allocated. Ranks compare one hash; only where it differs do they exchange details.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokens/token_file.h"
#include "dist/world/world.h"
#include "launch/cli/command.h"
#include "launch/config/config.h"

namespace tmamba {

// What one rank has read, in order.
class RankFacts {
 public:
  // `shown` stands for the value in messages; empty: the value itself.
  void must_agree(const std::string& key, const std::string& value, const std::string& shown = "");
  // A difference is printed and no error.
  void may_differ(const std::string& key, const std::string& value);

  // The effective configuration. Of paths to data only whether they are set: the content is compared.
  void add(const RunConfig& config);
  // The options given, except those that name a configuration, a checkpoint or data.
  void add(const Command& command);
  // The content of a token file; ranks may read copies of it.
  void add(const std::string& key, const TokenFileInfo& info);
  // Version of the program, and the environment variables that change numbers.
  void add_program();

  struct Fact {
    std::string key, value, shown;
    bool binding = true;
  };
  const std::vector<Fact>& list() const { return facts_; }

 private:
  std::vector<Fact> facts_;
};

// How an environment variable is treated.
enum class VariableUse { ignored, compared, reported };
VariableUse use_of_variable(std::string_view name);

// Calls `read` on every rank. If it throws, or the facts that must agree differ, every rank throws the same: UserError,
// naming each key with its values and the ranks that have them, and the ranks on which `read` threw; Error if it threw
// anything else than UserError. Collective.
void require_agreement(Communicator& comm, const std::function<void(RankFacts&)>& read);

// Parses the arguments of a verb that all ranks run together; `read` opens what they name and adds it to the facts.
// Returns false, on all ranks, if --help was given, which rank 0 prints. Collective; throws as require_agreement().
bool parse_together(World& world, const char* verb, Command& command, const std::vector<std::string>& arguments,
                    const std::function<void(RankFacts&)>& read);

}  // namespace tmamba
