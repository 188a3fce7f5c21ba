// What the documents name exists: files, verbs and their options, configuration keys, symbols of the code, tests,
// environment variables and links. And comments in the sources cite only documents of the repository.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "tests/launch/program.h"
#include "tests/source_dir.h"

namespace tmamba {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

const fs::path kRoot = TMAMBA_SOURCE_DIR;

// Names in documents that belong to other programs.
const Names kNamesOfOthers{"SignalChildrenProcesses"};

// A piece of code in a document: a span between backticks, or a line of an indented or fenced block.
struct Code {
  std::string where;  // FILE:LINE
  std::string text;
  bool inline_span = false;
};

bool is_document(const fs::path& file) { return file.extension() == ".md"; }

// All files of the repository but those that runs and builds leave there.
std::vector<fs::path> files_of_repository() {
  std::vector<fs::path> files;
  for (auto entry = fs::recursive_directory_iterator(kRoot); entry != fs::recursive_directory_iterator(); ++entry) {
    const std::string name = entry->path().filename().string();
    if (entry->is_directory() && (name.starts_with("build") || name == "runs" || name == ".git")) {
      entry.disable_recursion_pending();
    } else if (entry->is_regular_file()) {
      files.push_back(fs::relative(entry->path(), kRoot));
    }
  }
  return files;
}

std::vector<Code> code_in(const fs::path& file) {
  std::vector<Code> code;
  std::istringstream in(read_file(kRoot / file));
  const std::regex span("`([^`]+)`");
  bool fenced = false;
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    const std::string where = file.string() + ":" + std::to_string(++number);
    if (line.starts_with("```")) {
      fenced = !fenced;
    } else if (fenced || line.starts_with("    ")) {
      code.push_back({where, line.substr(0, line.find(" # ")), false});
    } else {
      for (std::sregex_iterator m(line.begin(), line.end(), span), end; m != end; ++m) {
        code.push_back({where, (*m)[1], true});
      }
    }
  }
  return code;
}

// What the program and the sources know.
struct Known {
  std::vector<fs::path> files = files_of_repository();
  std::map<std::string, std::string> help;  // of each verb
  Names keys, words, options, documents, tests;

  Known() {
    enter_test_folder("documents");
    const std::regex verb_line(R"(\n  ([a-z]+) {2,})"), word(R"([A-Za-z_][A-Za-z0-9_]*)"), option(R"(--[a-z][a-z-]+)");
    const std::regex test(R"(\nTEST(_F|_P)?\((\w+), (\w+)\))");
    const std::string verbs = transmamba("--help").output;
    for (std::sregex_iterator m(verbs.begin(), verbs.end(), verb_line), end; m != end; ++m) {
      help[(*m)[1]] = transmamba((*m)[1].str() + " --help").output;
    }
    std::istringstream explained(transmamba("explain").output);
    for (std::string line; std::getline(explained, line);) keys.insert(line.substr(0, line.find(' ')));
    for (const fs::path& file : files) {
      if (is_document(file)) documents.insert(file.filename().string());
      const Names data{".h5", ".png", ".gz"};
      const bool is_data = data.contains(file.extension().string()) || file.string().starts_with("tests/fuzz/bad/");
      if (is_document(file) || is_data || file.filename() == "documents_test.cpp") continue;
      const std::string text = read_file(kRoot / file);
      for (std::sregex_iterator m(text.begin(), text.end(), word), end; m != end; ++m) words.insert(m->str());
      for (std::sregex_iterator m(text.begin(), text.end(), option), end; m != end; ++m) options.insert(m->str());
      for (std::sregex_iterator m(text.begin(), text.end(), test), end; m != end; ++m) {
        tests.insert((*m)[2].str() + "." + (*m)[3].str());
      }
    }
  }
};

const Known& known() {
  static const Known known;
  return known;
}

// Whether a file or folder fits a pattern with * for any characters and {a,b} for alternatives.
bool exists(std::string pattern) {
  while (pattern.ends_with('/')) pattern.pop_back();
  std::string regex;
  for (const char c : pattern) {
    if (c == '*')
      regex += "[^/]*";
    else if (c == '{')
      regex += "(";
    else if (c == '}')
      regex += ")";
    else if (c == ',')
      regex += "|";
    else if (std::string(".+()[]^$\\").find(c) != std::string::npos)
      regex += std::string("\\") + c;
    else
      regex += c;
  }
  const std::regex whole(regex + "(/.*)?");
  return std::ranges::any_of(known().files,
                             [&](const fs::path& file) { return std::regex_match(file.string(), whole); });
}

template <class Check>
void for_each_code(Check check) {
  for (const fs::path& file : known().files) {
    if (!is_document(file)) continue;
    for (const Code& code : code_in(file)) check(code);
  }
}

TEST(Documents, FilesThatTheyNameAreThere) {
  const std::regex path(R"((\./)?((kernels|dist|data|model|launch|configs|cluster|tests|\.ci|\.github)/[\w./*{},-]*))");
  int checked = 0;
  for_each_code([&](const Code& code) {
    std::smatch match;
    if (!code.inline_span || !std::regex_match(code.text, match, path)) return;
    ++checked;
    EXPECT_TRUE(exists(match[2])) << code.where << ": there is no " << match[2];
  });
  EXPECT_GT(checked, 50);
}

TEST(Documents, LinksLeadSomewhere) {
  const std::regex link(R"(\]\(([^)#]+)(#[^)]*)?\))");
  for (const fs::path& file : known().files) {
    if (!is_document(file)) continue;
    const std::string text = read_file(kRoot / file);
    for (std::sregex_iterator m(text.begin(), text.end(), link), end; m != end; ++m) {
      const std::string target = (*m)[1];
      if (target.starts_with("http")) continue;
      EXPECT_TRUE(fs::exists(kRoot / file.parent_path() / target)) << file << ": no " << target;
    }
  }
}

TEST(Documents, VerbsAndTheirOptionsExist) {
  const std::regex command(R"(transmamba ([a-z]+)\b([^|&;)]*))"), option(R"(--[a-z][a-z-]+)");
  const std::regex verb_and_options(R"(([a-z]+)( .*)?)");
  int checked = 0;
  for_each_code([&](const Code& code) {
    const auto check = [&](const std::string& verb, const std::string& rest) {
      const std::string& help = known().help.at(verb);
      for (std::sregex_iterator m(rest.begin(), rest.end(), option), end; m != end; ++m) {
        ++checked;
        EXPECT_TRUE(help.find(m->str()) != std::string::npos) << code.where << ": " << verb << " has no " << m->str();
      }
    };
    std::smatch match;
    std::string text = code.text;
    if (std::regex_search(text, match, command)) {
      const std::string verb = match[1];
      const bool is_verb = known().help.contains(verb);
      if (text.find("build") == std::string::npos && text.find("git clone") == std::string::npos &&
          text.find("target") == std::string::npos && verb != "image") {
        EXPECT_TRUE(is_verb) << code.where << ": there is no verb " << verb;
      }
      if (is_verb) check(verb, match[2]);
    } else if (code.inline_span && std::regex_match(text, match, verb_and_options) && known().help.contains(match[1])) {
      check(match[1], match[2]);
    } else if (code.inline_span && text.starts_with("--")) {
      const std::string name = text.substr(0, text.find_first_of(" =[,"));
      const bool of_a_verb = std::ranges::any_of(
          known().help, [&](const auto& entry) { return entry.second.find(name) != std::string::npos; });
      EXPECT_TRUE(of_a_verb || known().options.contains(name)) << code.where << ": no option " << name;
    }
  });
  EXPECT_GT(checked, 20);
}

TEST(Documents, ConfigurationKeysExist) {
  const std::regex key(R"(\b((model|data|train|parallel|checkpoint|run)\.([a-z_]+))\b(?!\.)(?!/))");
  const Names endings{"h", "cpp", "cu", "toml", "sh", "h5", "txt", "md", "tar", "jsonl", "bin", "conf", "safetensors"};
  int checked = 0;
  for_each_code([&](const Code& code) {
    for (std::sregex_iterator m(code.text.begin(), code.text.end(), key), end; m != end; ++m) {
      const bool part_of_path =
          m->position() > 0 &&
          std::string("/-_.").find(code.text[static_cast<size_t>(m->position()) - 1]) != std::string::npos;
      if (part_of_path || endings.contains((*m)[3])) continue;
      ++checked;
      EXPECT_TRUE(known().keys.contains((*m)[1])) << code.where << ": there is no key " << (*m)[1];
    }
  });
  EXPECT_GT(checked, 30);
}

TEST(Documents, SymbolsAndVariablesExist) {
  const std::regex symbol(
      R"(([A-Z][a-z]+[A-Z][A-Za-z0-9]*|[A-Z][a-z0-9]+::[a-z_]+|[a-z_]+\(\)|[A-Za-z]+::[A-Za-z_]+(\(\))?))");
  const std::regex variable(R"(\b(SITE|TRANSMAMBA|TMAMBA)_[A-Z_]+\b)"), word(R"([A-Za-z_][A-Za-z0-9_]*)");
  int checked = 0;
  for_each_code([&](const Code& code) {
    if (code.inline_span && std::regex_match(code.text, symbol)) {
      for (std::sregex_iterator m(code.text.begin(), code.text.end(), word), end; m != end; ++m) {
        ++checked;
        EXPECT_TRUE(known().words.contains(m->str()) || kNamesOfOthers.contains(m->str()))
            << code.where << ": nothing in the sources is called " << m->str();
      }
    }
    for (std::sregex_iterator m(code.text.begin(), code.text.end(), variable), end; m != end; ++m) {
      ++checked;
      EXPECT_TRUE(known().words.contains(m->str())) << code.where << ": nothing reads " << m->str();
    }
  });
  EXPECT_GT(checked, 20);
}

TEST(Documents, TestsExist) {
  const std::regex name(R"([A-Z]\w*\.[A-Z]\w*)");
  int checked = 0;
  for_each_code([&](const Code& code) {
    if (!code.inline_span || !std::regex_match(code.text, name)) return;
    ++checked;
    EXPECT_TRUE(known().tests.contains(code.text)) << code.where << ": there is no test " << code.text;
  });
  EXPECT_GT(checked, 50);
}

TEST(Sources, CiteOnlyDocumentsOfTheRepository) {
  const std::regex document(R"(([\w/.-]*\w)\.md\b)");
  const Names sources{".cpp", ".h", ".cu", ".cuh", ".txt", ".sh", ".toml", ".sbatch", ".py"};
  for (const fs::path& file : known().files) {
    if (!sources.contains(file.extension().string()) || file.filename() == "documents_test.cpp") continue;
    std::istringstream in(read_file(kRoot / file));
    int number = 0;
    for (std::string line; std::getline(in, line);) {
      ++number;
      for (std::sregex_iterator m(line.begin(), line.end(), document), end; m != end; ++m) {
        const std::string name = m->str();
        const bool there = name.find('/') == std::string::npos ? known().documents.contains(name) : exists(name);
        EXPECT_TRUE(there) << file.string() << ":" << number << " cites " << name;
      }
    }
  }
}

}  // namespace
}  // namespace tmamba
