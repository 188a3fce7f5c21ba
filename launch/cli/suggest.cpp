#include "launch/cli/suggest.h"

#include <algorithm>
#include <filesystem>

#include "kernels/base/check.h"

namespace tmamba {

namespace fs = std::filesystem;

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

std::string nearest(const std::string& name, const std::vector<std::string>& names) {
  std::string best;
  size_t least = name.size() <= 3 ? 2 : std::max<size_t>(3, name.size() / 3 + 1);
  for (const std::string& other : names) {
    const size_t distance = edit_distance(name, other);
    if (distance < least) least = distance, best = other;
  }
  return best;
}

namespace {

constexpr int kMostEntries = 10000;  // of a directory that are looked at

// Corrects the first part of the path that does not exist, then the rest; empty if there is nothing like it.
fs::path nearest_path(const fs::path& path) {
  fs::path found;
  std::error_code error;
  for (const fs::path& part : path) {
    if (fs::exists(found / part, error)) {
      found /= part;
      continue;
    }
    std::vector<std::string> names;
    const fs::path folder = found.empty() ? "." : found;
    for (fs::directory_iterator at(folder, error), end; !error && at != end && std::ssize(names) < kMostEntries;
         at.increment(error)) {
      names.push_back(at->path().filename().string());
    }
    std::sort(names.begin(), names.end());
    const std::string near = nearest(part.string(), names);
    if (near.empty()) return {};
    found /= near;
  }
  return found;
}

}  // namespace

void require_exists(const std::string& label, const std::string& path) {
  std::error_code error;
  // What cannot be looked at for another reason is left to its reader, who says more.
  if (path == "-" || fs::exists(path, error) || error) return;
  const std::string near = nearest_path(path).string();
  throw UserError(str(label, " ", path, ": cannot read it: no such file or directory",
                      near.empty() ? "" : str("; did you mean ", near, "?")));
}

}  // namespace tmamba
