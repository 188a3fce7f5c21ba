#include "launch/cli/suggest.h"

#include <algorithm>
#include <vector>

namespace tmamba {

size_t edit_distance(const std::string& a, const std::string& b) {
  constexpr size_t kTooFar = 64;
  const size_t difference = std::max(a.size(), b.size()) - std::min(a.size(), b.size());
  if (difference > kTooFar) return difference;
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

size_t key_distance(const std::string& key, const std::string& name) {
  const std::string leaf = key.substr(key.rfind('.') + 1);
  return std::min(2 * edit_distance(key, name), 2 * edit_distance(leaf, name.substr(name.find('.') + 1)) + 1);
}

}  // namespace tmamba
