#include "launch/cli/command.h"

#include <algorithm>
#include <boost/program_options.hpp>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <sstream>

#include "kernels/base/check.h"
#include "launch/cli/suggest.h"

namespace tmamba {

namespace {

namespace po = boost::program_options;

constexpr const char* kArguments = "arguments";  // all positional words, for Boost
constexpr const char* kUnknownValue = ": unknown value; valid: ";

std::string meaning_of(const Option& option) {
  std::string text = option.actions.empty() ? option.help : str(joined(option.actions), ": ", option.help);
  const bool limited = option.kind == Option::Kind::integer || option.kind == Option::Kind::number;
  text = with_valid(text, limited ? option.limits.text() : joined(option.choices));
  return with_valid(text, option.repeated ? "repeatable" : "");
}

po::options_description visible_options(const VerbOptions& verb) {
  po::options_description all("options");
  all.add_options()("help,h", "show this text")("json", "print the result as JSON");
  for (const Option& option : verb.options) {
    if (option.kind == Option::Kind::flag) {
      all.add_options()(option.name.c_str(), meaning_of(option).c_str());
      continue;
    }
    // Only shown; the values are read as vectors, as Boost then takes an option several times.
    auto* value = po::value<std::vector<std::string>>()->composing();
    if (!option.value.empty()) value->default_value({option.value}, option.value);
    all.add_options()(option.name.c_str(), value, meaning_of(option).c_str());
  }
  return all;
}

// The whole text as a number, which may begin with "+".
template <class T>
std::errc parse_number(const std::string& text, T& out) {
  const char *begin = text.c_str() + text.starts_with('+'), *end = text.c_str() + text.size();
  const auto [stop, error] = std::from_chars(begin, end, out);
  return error == std::errc() && stop != end ? std::errc::invalid_argument : error;
}

// Text on one line, short enough for a message.
std::string shown(const std::string& text) {
  constexpr size_t kLongest = 200;
  if (text.empty()) return "\"\"";
  std::string out = text.size() > kLongest ? text.substr(0, kLongest) + "..." : text;
  std::replace_if(
      out.begin(), out.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; }, '?');
  return out;
}

int64_t read_integer(const std::string& label, const std::string& text, const Limits& limits) {
  int64_t value = 0;
  const std::errc error = parse_number(text, value);
  if (error == std::errc::invalid_argument) throw UserError(str(label, " ", shown(text), ": must be an integer"));
  const Limits range{std::max(limits.min, -0x1p63), std::min(limits.max, 0x1p63)};
  if (error != std::errc() || !limits.contain(static_cast<double>(value))) {
    throw UserError(str(label, " ", shown(text), ": must be ", error == std::errc() ? limits.text() : range.text()));
  }
  return value;
}

double read_number(const std::string& label, const std::string& text, const Limits& limits) {
  double value = 0;
  const std::errc error = parse_number(text, value);
  if (error == std::errc::invalid_argument) throw UserError(str(label, " ", shown(text), ": must be a number"));
  if (error != std::errc() || !std::isfinite(value) || !limits.contain(value)) {
    throw UserError(str(label, " ", shown(text), ": must be a number ", limits.text()));
  }
  return value;
}

std::string read_word(const std::string& label, const std::string& text, const Option& option) {
  if (text.empty() && !option.may_be_empty) throw UserError(str(label, " \"\": must not be empty: ", option.help));
  if (option.kind == Option::Kind::path) require_exists(label, text);
  const Choices& valid = option.choices;
  if (valid.empty() || std::find(valid.begin(), valid.end(), text) != valid.end()) return text;
  const std::string near = nearest(text, valid);
  throw UserError(str(label, " ", shown(text), kUnknownValue, joined(valid),
                      near.empty() ? "" : str("; did you mean ", near, "?")));
}

}  // namespace

void Command::fail(const std::string& problem) const {
  throw UserError(str(problem, "\nusage: transmamba ", verb_.usage(), "  (--help shows the options)"));
}

Command::Given Command::split(const std::vector<std::string>& arguments) const {
  const po::options_description visible = visible_options(verb_);
  po::options_description all;
  all.add(visible).add_options()(kArguments, po::value<std::vector<std::string>>());
  po::positional_options_description positional;
  positional.add(kArguments, -1);
  Given given;
  try {
    // No prefixes of option names: a typing error must not be taken for another option.
    const int style = po::command_line_style::default_style & ~po::command_line_style::allow_guessing;
    const auto parsed = po::command_line_parser(arguments).options(all).positional(positional).style(style).run();
    for (const auto& option : parsed.options) {
      std::vector<std::string>& texts = given[option.string_key];
      texts.insert(texts.end(), option.value.begin(), option.value.end());
    }
  } catch (const po::unknown_option& error) {
    Choices valid{"help", "json"};
    for (const Option& option : verb_.options) valid.push_back(option.long_name());
    const std::string name = error.get_option_name();
    const std::string near = nearest(name.substr(std::min(name.size(), name.find_first_not_of('-'))), valid);
    fail(str("unknown option ", shown(name), near.empty() ? "" : str("; did you mean --", near, "?")));
  } catch (const po::error& error) {
    fail(shown(error.what()));
  }
  return given;
}

size_t Command::assign_arguments(const std::vector<std::string>& words, Given& given) const {
  size_t at = 0;
  for (const Option& argument : verb_.arguments) {
    while (at < words.size()) {
      given[argument.name].push_back(words[at++]);
      if (!argument.repeated) break;
    }
  }
  return at;
}

void Command::take(const Option& option, const std::string& label, const Given& given, const std::string& action) {
  const std::string name = option.long_name();
  const auto found = given.find(name);
  const Choices& actions = option.actions;
  const bool belongs = actions.empty() || std::find(actions.begin(), actions.end(), action) != actions.end();
  if (found == given.end()) {
    if (option.needed && belongs) fail(str(label.starts_with("--") ? label : name, " is missing: ", option.help));
    if (option.value.empty() && !option.may_be_empty) return;
  } else if (!belongs) {
    fail(str(label, " is for ", verb_.name, " ", joined(actions), ", not for ", verb_.name, " ", action));
  }
  const std::vector<std::string> texts = found == given.end() ? std::vector{option.value} : found->second;
  if (texts.size() > 1 && !option.repeated) fail(str(label, " is given ", texts.size(), " times; give it once"));
  if (option.repeated) {
    for (const std::string& text : texts) read_word(label, text, option);
    values_[name] = texts;
  } else if (option.kind == Option::Kind::integer) {
    values_[name] = read_integer(label, texts.front(), option.limits);
  } else if (option.kind == Option::Kind::number) {
    values_[name] = read_number(label, texts.front(), option.limits);
  } else {
    // A flag has an empty text, or none.
    values_[name] = option.kind == Option::Kind::flag ? "" : read_word(label, texts.front(), option);
  }
}

bool Command::parse(const std::vector<std::string>& arguments, bool print) {
  Given given = split(arguments);
  if (given.contains("help")) {
    if (print) std::printf("%s", help().c_str());
    return false;
  }
  if (given.contains("json")) values_["json"] = "";
  const std::vector<std::string> words = given[kArguments];
  const size_t assigned = assign_arguments(words, given);
  given.erase(kArguments);
  for (const auto& [name, texts] : given) given_.emplace_back(name, joined(texts));
  for (const Option& argument : verb_.arguments) {
    // "checkpoint lss: unknown value"
    take(argument, argument.name == "action" ? verb_.name : argument.name, given,
         has("action") ? get<std::string>("action") : "");
  }
  for (const Option& option : verb_.options) {
    take(option, "--" + option.long_name(), given, has("action") ? get<std::string>("action") : "");
  }
  if (assigned < words.size()) fail(str("unexpected argument ", shown(words[assigned])));
  return true;
}

std::vector<std::string> Command::list(const std::string& name) const {
  return has(name) ? get<std::vector<std::string>>(name) : std::vector<std::string>{};
}

std::string Command::help() const {
  std::ostringstream out;
  out << "usage: transmamba " << verb_.usage() << "\n\n" << verb_.summary << "\n\n" << visible_options(verb_);
  return out.str();
}

}  // namespace tmamba
