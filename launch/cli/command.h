// One verb of the program: its options (Boost.Program_options), its help text, its parsed values.
#pragma once

#include <boost/program_options.hpp>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

// Compiled once, in command.cpp.
namespace boost::program_options {
extern template class typed_value<std::string>;
extern template class typed_value<int64_t>;
extern template class typed_value<double>;
}  // namespace boost::program_options

namespace tmamba {

class Command {
 public:
  // `usage` as in "train CONFIG [options]"; every command gets --help and --json.
  Command(const std::string& usage, const std::string& summary);

  boost::program_options::options_description_easy_init options() { return visible_.add_options(); }
  // Declares a positional argument; `count` of them, -1: all remaining.
  void positional(const std::string& name, int count = 1);

  // Returns false if --help was given, which the rank with `print` prints. Throws UserError for invalid arguments.
  bool parse(const std::vector<std::string>& arguments, bool print = true);

  bool has(const std::string& name) const { return values_.count(name) > 0; }
  bool json() const { return has("json"); }
  template <class T>
  T get(const std::string& name) const {
    return values_[name].as<T>();
  }
  // The positional argument. Throws UserError if it is missing.
  std::string required(const std::string& name) const;
  std::vector<std::string> list(const std::string& name) const;
  // The options and positional arguments given, with their values as text, in the order of the command line.
  const std::vector<std::pair<std::string, std::string>>& given() const { return given_; }
  std::string help() const;

 private:
  std::string usage_, summary_;
  std::vector<std::pair<std::string, std::string>> given_;
  boost::program_options::options_description visible_{"options"}, hidden_;
  boost::program_options::positional_options_description positional_;
  boost::program_options::variables_map values_;
};

}  // namespace tmamba
