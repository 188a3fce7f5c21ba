// The name a user probably meant.
#pragma once

#include <cstddef>
#include <string>

namespace tmamba {

// Insertions, deletions and changes of single characters that make `b` of `a`; where their lengths differ by more than
// any typing error, how much they differ.
size_t edit_distance(const std::string& a, const std::string& b);

// How far the dotted key `key` is from the valid key `name`: as a whole, or, for a wrong section, its last part alone.
size_t key_distance(const std::string& key, const std::string& name);

}  // namespace tmamba
