#include "launch/config/key_table.h"

#include <algorithm>
#include <optional>
#include <sstream>

#include "launch/cli/suggest.h"
#include "launch/config/config_text.h"

namespace tmamba {

namespace {

constexpr size_t kLongestName = 64;

std::string section_of(const std::string& key) { return key.substr(0, key.find('.')); }

std::string origin_of(const Origins& origins, const std::string& key) {
  const auto found = origins.find(key);
  return found == origins.end() ? "default" : found->second;
}

// The right side of an assignment as a table with the one key x: a TOML value, or else a string.
toml::table parsed_value(const std::string& value, const std::string& where) {
  const auto parse = [&](const std::string& right) -> std::optional<toml::table> {
    const std::string line = str("x = ", right);
    try {
      check_config_text(line, where);
      return toml::parse(line);
    } catch (const std::exception&) {
      return std::nullopt;
    }
  };
  auto parsed = parse(value);
  if (!parsed) parsed = parse(quoted(value));
  if (!parsed) throw UserError(str(where, ": the value is not valid UTF-8 text"));
  if (parsed->size() != 1) throw UserError(str(where, ": expected one value"));
  return *parsed;
}

// Names are parts of keys: --set SECTION.LIST.NAME.KEY=VALUE.
void check_name(const std::string& name, const Source& source) {
  const bool valid =
      !name.empty() && name.size() <= kLongestName &&
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == std::string::npos;
  if (!valid) source.fail(str("= ", quoted(name), " must be 1 to ", kLongestName, " letters, digits, \"_\" or \"-\""));
}

}  // namespace

void KeyTable::set_origins_to_default(Origins& origins) const {
  for (const Key& key : keys_) origins[key.name] = "default";
}

std::vector<KeyTable::Key> KeyTable::all_keys() const {
  std::vector<Key> all = keys_;
  for (const Table& list : tables_) {
    for (size_t i = 0; i < list.size(); ++i) {
      for (Key& key : list.entry_keys(i)) {
        key.name = str(list.name, ".", list.entry_name(i), ".", key.name);
        all.push_back(std::move(key));
      }
    }
  }
  return all;
}

// The valid key that is most like `key`.
std::string KeyTable::nearest(const std::string& key) const {
  std::string best;
  size_t best_distance = std::string::npos;
  const auto consider = [&](const std::string& name) {
    const size_t distance = key_distance(key, name);
    if (best.empty() || distance < best_distance) best_distance = distance, best = name;
  };
  for (const Key& known : all_keys()) consider(known.name);
  for (const Table& list : tables_) consider(list.name);
  return best;
}

// Reads the one of `keys` that is called `name` and returns true; false if there is none.
bool KeyTable::read_one_of(const std::vector<Key>& keys, const std::string& name, const Source& source,
                           const toml::node& node, Origins& origins) {
  const auto found = std::find_if(keys.begin(), keys.end(), [&](const Key& key) { return key.name == name; });
  if (found == keys.end()) return false;
  found->read(source, node);
  origins[source.key] = source.where;
  return true;
}

void KeyTable::read_key(const Source& source, const toml::node& node, Origins& origins) const {
  if (read_one_of(keys_, source.key, source, node, origins)) return;
  if (read_one_of(all_keys(), source.key, source, node, origins)) return;
  for (const Table& list : tables_) {
    const std::string rest = source.key.starts_with(list.name + ".") ? source.key.substr(list.name.size() + 1) : "";
    const std::string entry = rest.substr(0, rest.find('.'));
    bool exists = rest.empty();
    std::string names;
    for (size_t i = 0; i < list.size(); ++i) {
      exists = exists || list.entry_name(i) == entry;
      names += (names.empty() ? "" : ", ") + list.entry_name(i);
    }
    if (exists) continue;
    throw UserError(str(source.where, ": unknown key ", source.key, ": [[", list.name, "]] has no entry named \"",
                        entry, "\"; ", names.empty() ? "it has no entries" : "entries: " + names));
  }
  throw UserError(str(source.where, ": unknown key ", source.key, "; did you mean ", nearest(source.key), "?"));
}

void KeyTable::read_entry(const Table& list, const toml::table& entry, const Where& where, Origins& origins) const {
  const toml::node* given = entry.get("name");
  if (given == nullptr)
    throw UserError(str(where(entry), ": this [[", list.name, "]] has no name; add name = \"...\""));
  const Source source{list.name + ".name", where(*given)};
  std::string name;
  read(source, *given, name, Limits{});
  check_name(name, source);
  const std::string full = list.name + "." + name;
  if (const auto other = origins.find(full); other != origins.end()) {
    source.fail(str("= ", quoted(name), " is already taken by the entry at ", other->second));
  }
  list.append(name);
  origins[full] = source.where;
  for (const KeyValue& field : list.fields) origins[full + "." + field.name] = "default";
  const std::vector<Key> keys = list.entry_keys(list.size() - 1);
  for (const auto& [key, node] : entry) {
    const std::string field(key.str());
    const Source at{full + "." + field, where(node)};
    if (field == "name" || read_one_of(keys, field, at, node, origins)) continue;
    throw UserError(str(at.where, ": unknown key ", at.key, "; did you mean ", nearest(at.key), "?"));
  }
}

// A list given again replaces the one before.
void KeyTable::read_list(const Table& list, const toml::node& node, const Where& where, Origins& origins) const {
  const toml::array* entries = node.as_array();
  const bool tables = entries != nullptr && std::all_of(entries->begin(), entries->end(),
                                                        [](const toml::node& entry) { return entry.is_table(); });
  if (!tables) {
    Source{list.name, where(node)}.fail(str("must be a list of tables: [[", list.name, "]] with name = \"...\""));
  }
  list.clear();
  std::erase_if(origins, [&](const auto& origin) { return origin.first.starts_with(list.name + "."); });
  for (const toml::node& entry : *entries) read_entry(list, *entry.as_table(), where, origins);
}

void KeyTable::read_section(const toml::table& section, const std::string& prefix, const Where& where,
                            Origins& origins) const {
  for (const auto& [key, node] : section) {
    const std::string path = prefix.empty() ? std::string(key.str()) : prefix + "." + std::string(key.str());
    const auto list =
        std::find_if(tables_.begin(), tables_.end(), [&](const Table& table) { return table.name == path; });
    if (list != tables_.end()) {
      read_list(*list, node, where, origins);
    } else if (const toml::table* inner = node.as_table()) {
      read_section(*inner, path, where, origins);
    } else {
      read_key({path, where(node)}, node, origins);
    }
  }
}

void KeyTable::read_text(const std::string& text, const std::string& name, Origins& origins) const {
  check_config_text(text, name);
  try {
    const toml::table table = toml::parse(text, name);
    read_section(
        table, "", [&](const toml::node& node) { return str(name, ":", node.source().begin.line); }, origins);
  } catch (const toml::parse_error& error) {
    throw UserError(
        str(name, ":", error.source().begin.line, ":", error.source().begin.column, ": ", error.description()));
  }
}

void KeyTable::override_by(const std::string& assignment, Origins& origins) const {
  const std::string where = str("--set ", assignment);
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) throw UserError(str(where, ": expected section.key=value"));
  const std::string key = assignment.substr(0, equals);
  const toml::table parsed = parsed_value(assignment.substr(equals + 1), where);
  const toml::node& value = *parsed.get("x");
  const auto list = std::find_if(tables_.begin(), tables_.end(), [&](const Table& table) { return table.name == key; });
  if (list == tables_.end()) {
    read_key({key, where}, value, origins);
  } else {
    read_list(
        *list, value, [&](const toml::node&) { return where; }, origins);
  }
  for (auto& [name, origin] : origins) {
    if (origin == where) origin = "--set";
  }
}

std::vector<KeyValue> KeyTable::values() const {
  std::vector<KeyValue> values;
  for (const Key& key : all_keys()) values.push_back({key.name, key.text(), key.meaning, key.resume, key.valid});
  return values;
}

std::string KeyTable::to_toml(const Origins& origins) const {
  std::vector<std::string> sections;
  const auto note = [&](const std::string& name) {
    const std::string section = section_of(name);
    if (std::find(sections.begin(), sections.end(), section) == sections.end()) sections.push_back(section);
  };
  for (const Key& key : keys_) note(key.name);
  for (const Table& list : tables_) note(list.name);
  std::ostringstream out;
  const auto header = [&](const std::string& text) { out << (out.tellp() == 0 ? "" : "\n") << text << "\n"; };
  const auto line = [&](const std::string& name, const std::string& value, const std::string& key) {
    out << name << " = " << value << "  # " << origin_of(origins, key) << "\n";
  };
  for (const std::string& section : sections) {
    bool begun = false;
    for (const Key& key : keys_) {
      if (section_of(key.name) != section) continue;
      if (!begun) header("[" + section + "]");
      begun = true;
      line(key.name.substr(section.size() + 1), key.text(), key.name);
    }
    for (const Table& list : tables_) {
      if (section_of(list.name) != section) continue;
      for (size_t i = 0; i < list.size(); ++i) {
        const std::string full = list.name + "." + list.entry_name(i);
        header("[[" + list.name + "]]");
        line("name", quoted(list.entry_name(i)), full);
        for (const Key& key : list.entry_keys(i)) line(key.name, key.text(), full + "." + key.name);
      }
    }
  }
  return out.str();
}

std::vector<KeyValue> KeyTable::explain(const std::string& name) const {
  std::vector<KeyValue> found;
  for (const Key& key : keys_) {
    if (name.empty() || name == key.name) found.push_back({key.name, key.text(), key.meaning, key.resume, key.valid});
  }
  for (const Table& list : tables_) {
    const bool whole = name.empty() || name == list.name;
    if (whole)
      found.push_back({list.name, "[]", list.meaning, {}, str("one is set by ", list.name, ".NAME.KEY=VALUE")});
    if (whole) found.push_back({list.name + ".name", "", "required, different from the other names", {}, ""});
    for (const KeyValue& field : list.fields) {
      // Also as --set takes it, with the name of an entry.
      const bool one = name == list.name + "." + field.name ||
                       (name.starts_with(list.name + ".") && name.ends_with("." + field.name));
      if (!whole && !one) continue;
      found.push_back({list.name + "." + field.name, field.text, field.meaning, field.resume, field.valid});
    }
  }
  if (found.empty()) throw UserError(str("unknown key ", name, "; did you mean ", nearest(name), "?"));
  return found;
}

}  // namespace tmamba
