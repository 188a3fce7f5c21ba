#include "launch/slurm/site.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>

#include "kernels/base/check.h"
#include "launch/cli/child_process.h"

namespace tmamba {

namespace {

struct Line {
  std::string where;  // "site.env:3"
  std::string name, value;
  [[noreturn]] void fail(const std::string& problem) const { throw UserError(str(where, ": ", name, problem)); }
};

bool has_only(const std::string& text, const std::string& marks) {
  return std::all_of(text.begin(), text.end(), [&](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           marks.find(c) != std::string::npos;
  });
}

// Returns the value of a shell assignment. A quoted value may span lines; a comment may follow it.
std::string value_of(std::istream& in, std::string rest, int& number, const Line& line) {
  const char quote = rest.empty() ? '\0' : rest[0];
  if (quote != '"' && quote != '\'') {
    const std::string word = rest.substr(0, rest.find_first_of(" \t#"));
    const size_t next = rest.find_first_not_of(" \t", word.size());
    if (next != std::string::npos && rest[next] != '#') line.fail(": a value of several words needs quotes");
    if (!has_only(word, "_-./:=,@%+"))
      line.fail(str(" = ", word, ": a value with characters other than letters, digits and _-./:=,@%+ needs quotes"));
    return word;
  }
  rest.erase(0, 1);
  size_t end;
  while ((end = rest.find(quote)) == std::string::npos) {
    std::string more;
    if (!std::getline(in, more)) line.fail(": the quotes are not closed");
    ++number;
    rest += "\n" + more;
  }
  const size_t next = rest.find_first_not_of(" \t", end + 1);
  if (next != std::string::npos && rest[next] != '#') line.fail(": text follows the closing quote; remove it");
  const std::string value = rest.substr(0, end);
  if (quote == '"' && value.find_first_of("$`\\") != std::string::npos) {
    line.fail(": a value with $, ` or \\ needs single quotes");
  }
  return value;
}

int64_t number_of(const Line& line) {
  int64_t number = -1;
  const char* end = line.value.data() + line.value.size();
  const auto [stop, problem] = std::from_chars(line.value.data(), end, number);
  if (problem != std::errc() || stop != end || number < 0)
    line.fail(str(" = ", line.value, ": must be a number of at least 0"));
  return number;
}

std::vector<std::string> words_of(const Line& line) {
  std::istringstream in(line.value);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

using Setter = std::function<void(Site&, const Line&)>;

// A name in SLURM's notation; it is written into an #SBATCH line.
Setter name_into(std::string Site::*member) {
  return [member](Site& site, const Line& line) {
    if (!has_only(line.value, "_-./:=,@%+&|*[]()!"))
      line.fail(str(" = ", line.value, ": contains a character that SLURM does not allow in this option"));
    site.*member = line.value;
  };
}

Setter text_into(std::string Site::*member) {
  return [member](Site& site, const Line& line) { site.*member = line.value; };
}

Setter number_into(int64_t Site::*member) {
  return [member](Site& site, const Line& line) { site.*member = number_of(line); };
}

Setter choice_into(std::string Site::*member, const std::vector<std::string>& choices) {
  return [member, choices](Site& site, const Line& line) {
    if (std::find(choices.begin(), choices.end(), line.value) == choices.end()) {
      std::string names;
      for (const std::string& choice : choices) names += (names.empty() ? "" : " or ") + choice;
      line.fail(str(" = ", line.value, ": must be ", names));
    }
    site.*member = line.value;
  };
}

void set_sbatch_options(Site& site, const Line& line) {
  for (const std::string& word : words_of(line)) {
    if (!word.starts_with("--") || !has_only(word, "_-./:=,@%+&|*[]()!")) {
      line.fail(str(": ", word, ": must have the form --name or --name=value"));
    }
    site.sbatch_options.push_back(word);
  }
}

const std::map<std::string, Setter>& setters() {
  static const std::map<std::string, Setter> all{
      {"SITE_PARTITION", name_into(&Site::partition)},
      {"SITE_ACCOUNT", name_into(&Site::account)},
      {"SITE_QOS", name_into(&Site::qos)},
      {"SITE_CONSTRAINT", name_into(&Site::constraint)},
      {"SITE_GPUS_PER_NODE", number_into(&Site::gpus_per_node)},
      {"SITE_GPU_OPTION", choice_into(&Site::gpu_option, {"gpus-per-node", "gres"})},
      {"SITE_GPU_TYPE", name_into(&Site::gpu_type)},
      {"SITE_RANKS_PER_NODE", number_into(&Site::ranks_per_node)},
      {"SITE_CPUS_PER_RANK", number_into(&Site::cpus_per_rank)},
      {"SITE_TIME", name_into(&Site::time)},
      {"SITE_SIGNAL_SECONDS", number_into(&Site::signal_seconds)},
      {"SITE_LAUNCHER", choice_into(&Site::launcher, {"srun", "mpirun"})},
      {"SITE_MPI", name_into(&Site::mpi)},
      {"SITE_INTERFACE", name_into(&Site::interface)},
      {"SITE_REQUEUE", choice_into(&Site::requeue, {"auto", "self", "never"})},
      {"SITE_RESTARTS", number_into(&Site::restarts)},
      {"SITE_SETUP", text_into(&Site::setup)},
      {"SITE_CONTAINER", [](Site& site, const Line& line) { site.container = words_of(line); }},
      {"SITE_PROGRAM", text_into(&Site::program)},
      {"SITE_SBATCH_OPTIONS", set_sbatch_options},
  };
  return all;
}

}  // namespace

Site parse_site(const std::string& text, const std::string& name) {
  std::istringstream in(text);
  Site site;
  int number = 0;
  for (std::string raw; std::getline(in, raw);) {
    ++number;
    Line line{.where = str(name, ":", number), .name = "", .value = ""};
    if (raw.ends_with('\r')) {
      line.fail(
          "the line ends with CRLF, and a shell would make the CR part of the value; convert the file: sed -i "
          "'s/\\r$//' " +
          name);
    }
    const size_t begin = raw.find_first_not_of(" \t");
    if (begin == std::string::npos || raw[begin] == '#') continue;
    const size_t equals = raw.find('=');
    if (equals == std::string::npos) line.fail(str(raw, ": must be NAME=value"));
    line.name = raw.substr(begin, equals - begin);
    const auto setter = setters().find(line.name);
    if (setter == setters().end()) {
      std::string names;
      for (const auto& [known, unused] : setters()) names += " " + known;
      line.fail(str(": unknown variable; valid:", names));
    }
    line.value = value_of(in, raw.substr(equals + 1), number, line);
    if (!line.value.empty()) setter->second(site, line);
  }
  return site;
}

Site read_site(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in || std::filesystem::is_directory(file))
    throw UserError(str(file.string(), ": cannot be read; check the path of the site file"));
  std::ostringstream text;
  text << in.rdbuf();
  return parse_site(text.str(), file.string());
}

std::string site_file(const std::string& named) {
  if (!named.empty()) return named;
  const char* file = std::getenv("TRANSMAMBA_SITE");
  return file != nullptr ? file : "";
}

Site site_of(const std::string& file) { return file.empty() ? Site{} : read_site(file); }

std::vector<std::string> rank_program(const Site& site) {
  std::vector<std::string> words = site.container;
  words.push_back(!site.program.empty() ? site.program : site.container.empty() ? own_program() : "transmamba");
  return words;
}

std::vector<std::string> srun_words(const Site& site) { return {"srun", "--mpi=" + site.mpi, "--kill-on-bad-exit=1"}; }

}  // namespace tmamba
