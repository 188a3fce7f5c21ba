#include "launch/cli/command.h"

#include <cstdio>
#include <sstream>

#include "kernels/base/check.h"

namespace boost::program_options {
template class typed_value<std::string>;
template class typed_value<int64_t>;
template class typed_value<double>;
}  // namespace boost::program_options

namespace tmamba {

namespace po = boost::program_options;

Command::Command(const std::string& usage, const std::string& summary) : usage_(usage), summary_(summary) {
  visible_.add_options()("help,h", "show this text")("json", "print the result as JSON");
}

void Command::positional(const std::string& name, int count) {
  if (count == 1) {
    hidden_.add_options()(name.c_str(), po::value<std::string>());
  } else {
    hidden_.add_options()(name.c_str(), po::value<std::vector<std::string>>());
  }
  positional_.add(name.c_str(), count);
}

bool Command::parse(const std::vector<std::string>& arguments, bool print) {
  po::options_description all;
  all.add(visible_).add(hidden_);
  try {
    // No prefixes of option names: a typing error must not be taken for another option.
    const int style = po::command_line_style::default_style & ~po::command_line_style::allow_guessing;
    const auto parsed = po::command_line_parser(arguments).options(all).positional(positional_).style(style).run();
    for (const auto& option : parsed.options) {
      std::string text;
      for (const std::string& value : option.value) text += (text.empty() ? "" : " ") + value;
      given_.emplace_back(option.string_key, text);
    }
    po::store(parsed, values_);
    po::notify(values_);
  } catch (const po::error& error) {
    throw UserError(str(error.what(), "\nusage: transmamba ", usage_, "  (--help shows the options)"));
  }
  if (!has("help")) return true;
  if (print) std::printf("%s", help().c_str());
  return false;
}

std::string Command::required(const std::string& name) const {
  if (!has(name)) throw UserError(str(name, " is missing\nusage: transmamba ", usage_, "  (--help shows the options)"));
  return get<std::string>(name);
}

std::vector<std::string> Command::list(const std::string& name) const {
  return has(name) ? get<std::vector<std::string>>(name) : std::vector<std::string>{};
}

std::string Command::help() const {
  std::ostringstream out;
  out << "usage: transmamba " << usage_ << "\n\n" << summary_ << "\n\n" << visible_;
  return out.str();
}

}  // namespace tmamba
