// The parser of command lines: the first line of an input chooses a verb, the others are its arguments.
#include <fstream>
#include <sstream>

#include "launch/cli/command.h"
#include "tests/fuzz/target.h"

namespace tmamba::fuzz {

namespace {

void check_accepted(const Option& option, const Command& command) {
  const std::string name = option.long_name();
  if (!command.has(name)) {
    require(!option.needed || !option.actions.empty(), "a required option may be missing");
  } else if (option.kind == Option::Kind::integer) {
    require(option.limits.contain(static_cast<double>(command.get<int64_t>(name))), "an integer is out of its limits");
  } else if (option.kind == Option::Kind::number) {
    require(option.limits.contain(command.get<double>(name)), "a number is out of its limits");
  } else if (option.kind != Option::Kind::flag && !option.repeated) {
    require(option.may_be_empty || !command.get<std::string>(name).empty(), "a text is empty");
  }
}

void bytes(const std::string& text) {
  std::istringstream lines(text);
  std::string line;
  std::vector<std::string> arguments;
  std::getline(lines, line);
  const std::vector<VerbOptions>& verbs = all_verb_options();
  const VerbOptions& verb = verbs[line.empty() ? 0 : static_cast<unsigned char>(line[0]) % verbs.size()];
  while (std::getline(lines, line)) arguments.push_back(line);
  Command command(verb.name);
  require(command.help().find(verb.usage()) != std::string::npos, "the help text lacks the usage");
  if (!command.parse(arguments, false)) return;
  for (const auto* list : {&verb.arguments, &verb.options}) {
    for (const Option& option : *list) check_accepted(option, command);
  }
}

void file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  try {
    bytes(text.str());
  } catch (const Error& error) {
    throw UserError(str(path.string(), ": ", error.what()));
  }
}

}  // namespace

const Target options{"options", bytes, file};

}  // namespace tmamba::fuzz
