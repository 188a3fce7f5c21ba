// The options and arguments of every verb: the one table from which parsing, checks, help texts and messages derive, as
// those of configuration keys derive from launch/config/config_keys.cpp.
#pragma once

#include <string>
#include <vector>

#include "launch/cli/limits.h"

namespace tmamba {

struct Option {
  enum class Kind {
    flag,     // takes no value
    integer,  // int64 within the limits
    number,   // finite, within the limits
    text,     // not empty, one of the choices if there are any
    path,     // of a file or directory that exists, or "-"
  };
  std::string name;  // "batch"; with a short form "output,o"
  Kind kind = Kind::flag;
  std::string help;
  Limits limits = {};
  Choices choices = {};
  std::string value = {};  // the default; empty: none
  bool repeated = false;   // may be given several times
  bool needed = false;
  bool may_be_empty = false;
  Choices actions = {};  // the verb's actions that take it; empty: all

  std::string long_name() const { return name.substr(0, name.find(',')); }

  // These return a copy that differs in one respect.
  Option with_default(const std::string& text) const;
  Option repeatable() const;
  Option required() const;
  Option or_empty() const;
  Option only(const Choices& actions) const;
};

struct VerbOptions {
  std::string name;  // "eval", "bench comm"
  std::string summary;
  std::vector<Option> arguments;  // positional, in this order; the last may be repeated. One called "action" selects
                                  // what the verb does, and is always the first
  std::vector<Option> options;

  // "eval CHECKPOINT [options]"
  std::string usage() const;
};

// Every verb; --help and --json, which all have, are not in the table.
const std::vector<VerbOptions>& all_verb_options();
const VerbOptions& options_of(const std::string& verb);

}  // namespace tmamba
