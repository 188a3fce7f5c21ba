// The name a user probably meant.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace tmamba {

// Number of insertions, deletions and changes of single characters that turn `a` into `b`; for very different lengths
// only the difference of the lengths.
size_t edit_distance(const std::string& a, const std::string& b);

// Distance of the dotted key `key` from the valid key `name`: of the whole key or, for a wrong section, of its last
// part.
size_t key_distance(const std::string& key, const std::string& name);

// The one of `names` that differs from `name` least; empty if that is by more than two and a third of its characters,
// or by more than one of up to three characters.
std::string nearest(const std::string& name, const std::vector<std::string>& names);

// Throws UserError if there is no such file or directory, with the existing path that is most like it: in the nearest
// directory that exists, or the same path below a directory with a similar name. `label`: "--data", "checkpoint".
void require_exists(const std::string& label, const std::string& path);

}  // namespace tmamba
