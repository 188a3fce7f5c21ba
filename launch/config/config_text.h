// The text of a configuration file, checked before it is parsed as TOML.
#pragma once

#include <filesystem>
#include <string>

namespace tmamba {

// Reads the file. Throws UserError if it is not a regular file, cannot be read, or is longer than 1 MiB.
std::string read_config_text(const std::filesystem::path& file);

// Throws UserError, naming `name`, line and column, for input that the parser (toml++ 3.3) handles with undefined
// behaviour instead of an error: non-ASCII characters outside of strings and comments, and keys of so many parts that
// its recursion would be deep.
void check_config_text(const std::string& text, const std::string& name);

}  // namespace tmamba
