// The arguments of one verb, parsed and checked by the table of launch/cli/options.h.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "launch/cli/options.h"

namespace tmamba {

class Command {
 public:
  // The verb of the table: "eval", "bench comm". Each also gets --help and --json.
  explicit Command(const std::string& verb) : verb_(options_of(verb)) {}

  // Returns false if --help was given, which the rank with `print` prints. Throws UserError that names the option with
  // the value seen and what is valid, for everything that the table does not allow.
  bool parse(const std::vector<std::string>& arguments, bool print = true);

  // Whether the option or argument was given or has a default.
  bool has(const std::string& name) const { return values_.contains(name); }
  bool json() const { return has("json"); }
  // The value of an option that has() one: int64_t, double or std::string.
  template <class T>
  T get(const std::string& name) const {
    return std::get<T>(values_.at(name));
  }
  // All values of a repeatable option; none if it was not given.
  std::vector<std::string> list(const std::string& name) const;
  // The options and positional arguments given, with their values as text, by name.
  const std::vector<std::pair<std::string, std::string>>& given() const { return given_; }
  std::string help() const;

 private:
  using Value = std::variant<int64_t, double, std::string, std::vector<std::string>>;
  using Given = std::map<std::string, std::vector<std::string>>;

  // The texts given for each option and argument, by its long name.
  Given split(const std::vector<std::string>& arguments) const;
  // Returns how many of the words the verb's arguments take.
  size_t assign_arguments(const std::vector<std::string>& words, Given& given) const;
  void take(const Option& option, const std::string& label, const Given& given, const std::string& action);
  [[noreturn]] void fail(const std::string& problem) const;

  const VerbOptions& verb_;
  std::vector<std::pair<std::string, std::string>> given_;
  std::map<std::string, Value> values_;
};

}  // namespace tmamba
