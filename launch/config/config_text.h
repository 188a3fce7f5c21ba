// The text of a configuration file, before the TOML parser sees it.
#pragma once

#include <filesystem>
#include <string>

namespace tmamba {

// The whole file. Throws UserError where it is no plain file, cannot be read, or is longer than any configuration is.
std::string read_config_text(const std::filesystem::path& file);

// Throws UserError, naming `name`, line and column, for what the parser (toml++ 3.3) meets with undefined behaviour
// instead of an error - characters that are not ASCII outside of strings and comments - and for keys of so many parts
// that its recursion would go deep.
void check_config_text(const std::string& text, const std::string& name);

}  // namespace tmamba
