// The name a user probably meant.
#pragma once

#include <cstddef>
#include <string>

namespace tmamba {

// Number of insertions, deletions and changes of single characters that turn `a` into `b`; for very different lengths
// only the difference of the lengths.
size_t edit_distance(const std::string& a, const std::string& b);

// Distance of the dotted key `key` from the valid key `name`: of the whole key or, for a wrong section, of its last
// part.
size_t key_distance(const std::string& key, const std::string& name);

}  // namespace tmamba
