// class KeyTable: the keys of a configuration, each bound to the member that holds its value. Reading a file, --set,
// explain, the saved text and the rules of resuming all go through it. For files that include the parser themselves.
#pragma once

#include <toml++/toml.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "launch/config/config.h"
#include "launch/config/toml_value.h"

namespace tmamba {

// Where the value of each key comes from, by the key's name: "FILE:LINE", "--set" or "default".
using Origins = std::map<std::string, std::string>;

class KeyTable {
 public:
  // Declares a key: SECTION.NAME; its member; what values it takes (Limits, Choices, or a vector of an enum's values);
  // whether it may change when a run resumes; what it means.
  template <class T, class Rule>
  void key(const std::string& name, T& member, const Rule& rule, Resume resume, const char* meaning) {
    keys_.push_back({.name = name,
                     .meaning = meaning,
                     .resume = resume,
                     .read = [&member, rule](const Source& s, const toml::node& node) { read(s, node, member, rule); },
                     .text = [&member] { return text_of(member); },
                     .valid = valid_text(member, rule)});
  }
  // Declares a list of tables with names, [[SECTION.NAME]]. An Entry has a member `name`; declare(keys, entry) declares
  // its other keys by their names within the entry.
  template <class Entry, class Declare>
  void named_tables(const std::string& name, std::vector<Entry>& entries, const char* meaning, const Declare& declare) {
    Entry defaults;
    KeyTable fields;
    declare(fields, defaults);
    tables_.push_back({.name = name,
                       .meaning = meaning,
                       .fields = fields.values(),
                       .clear = [&entries] { entries.clear(); },
                       .append = [&entries](const std::string& entry) { entries.emplace_back().name = entry; },
                       .size = [&entries] { return entries.size(); },
                       .entry_name = [&entries](size_t i) { return entries[i].name; },
                       .entry_keys =
                           [&entries, declare](size_t i) {
                             KeyTable keys;
                             declare(keys, entries[i]);
                             return keys.keys_;
                           }});
  }

  // Notes that no key has been given.
  void set_origins_to_default(Origins& origins) const;
  // Reads a whole file; `name` stands for it in messages. Throws UserError naming file, line and key.
  void read_text(const std::string& text, const std::string& name, Origins& origins) const;
  // "SECTION.NAME=VALUE"; of a table in a list "SECTION.LIST.ENTRY.NAME=VALUE". A value that is not TOML is a string.
  void override_by(const std::string& assignment, Origins& origins) const;

  // Every key with the text of its value, those of tables in lists included, in the order of declaration.
  std::vector<KeyValue> values() const;
  // All of it as a TOML file, each value with its origin as a comment.
  std::string to_toml(const Origins& origins) const;
  // Every key, or that key or list of tables only. Throws UserError with the nearest name for an unknown one.
  std::vector<KeyValue> explain(const std::string& name) const;

 private:
  struct Key {
    std::string name;
    const char* meaning;
    Resume resume;
    std::function<void(const Source&, const toml::node&)> read;
    std::function<std::string()> text;
    std::string valid;
  };
  struct Table {
    std::string name;
    const char* meaning;
    std::vector<KeyValue> fields;  // with their defaults
    std::function<void()> clear;
    std::function<void(const std::string& name)> append;
    std::function<size_t()> size;
    std::function<std::string(size_t entry)> entry_name;
    std::function<std::vector<Key>(size_t entry)> entry_keys;
  };
  using Where = std::function<std::string(const toml::node&)>;

  std::vector<Key> all_keys() const;
  std::string nearest(const std::string& key) const;
  static bool read_one_of(const std::vector<Key>& keys, const std::string& name, const Source& source,
                          const toml::node& node, Origins& origins);
  void read_key(const Source& source, const toml::node& node, Origins& origins) const;
  void read_section(const toml::table& section, const std::string& prefix, const Where& where, Origins& origins) const;
  void read_list(const Table& list, const toml::node& node, const Where& where, Origins& origins) const;
  void read_entry(const Table& list, const toml::table& entry, const Where& where, Origins& origins) const;

  std::vector<Key> keys_;
  std::vector<Table> tables_;
};

// The keys of a run, bound to the members of `config` (config_keys.cpp).
KeyTable keys_of(RunConfig& config);

}  // namespace tmamba
