// The host half of device_memory(): the memory that Linux reports as available, less where a control group (a
// container, a batch job) may have less. Groups form a tree; this process's group and each of its ancestors may set a
// limit.
#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include "kernels/base/device.h"

namespace tmamba {

namespace {

// The first number of a file; none where there is no such file or it holds a word ("max").
std::optional<size_t> number_in(const std::string& file) {
  std::ifstream in(file);
  size_t number = 0;
  if (in >> number) return number;
  return std::nullopt;
}

// The number that follows `key` in a file of "key number" lines.
std::optional<size_t> number_behind(const std::string& file, const std::string& key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string word;
    size_t number = 0;
    if (words >> word >> number && word == key) return number;
  }
  return std::nullopt;
}

// Where groups of a kind are, and what their files are called.
struct GroupTree {
  std::string controller;  // in /proc/self/cgroup
  std::string folder, limit, usage, reclaimable;
};

const GroupTree kTrees[] = {
    {"", "/sys/fs/cgroup", "/memory.max", "/memory.current", "inactive_file"},
    {"memory", "/sys/fs/cgroup/memory", "/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file"}};

// The path of this process's group in a tree, from its line "ID:CONTROLLERS:PATH".
std::string group_path(const std::string& root, const std::string& controller) {
  std::ifstream in(root + "/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos || line.substr(first + 1, second - first - 1) != controller) continue;
    const std::string path = line.substr(second + 1);
    return path == "/" ? "" : path;
  }
  return "";
}

void tighten(DeviceMemory& memory, const std::string& group, const GroupTree& tree) {
  const auto limit = number_in(group + tree.limit), usage = number_in(group + tree.usage);
  // Without a limit the old kind of group shows a number larger than any memory.
  if (!limit || !usage || *limit >= memory.total) return;
  // Files that could be dropped from memory count as used, but make room when it is asked for.
  const size_t used = *usage - std::min(*usage, number_behind(group + "/memory.stat", tree.reclaimable).value_or(0));
  memory.total = *limit;
  memory.free = std::min(memory.free, *limit - std::min(*limit, used));
}

}  // namespace

DeviceMemory host_memory(const std::string& root) {
  const auto total = number_behind(root + "/proc/meminfo", "MemTotal:"),
             free = number_behind(root + "/proc/meminfo", "MemAvailable:");
  if (!total || !free) return {std::numeric_limits<size_t>::max(), std::numeric_limits<size_t>::max()};
  DeviceMemory memory{.free = *free * 1024, .total = *total * 1024};
  for (const GroupTree& tree : kTrees) {
    std::string path = group_path(root, tree.controller);
    while (true) {
      tighten(memory, root + tree.folder + path, tree);
      if (path.empty()) break;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
  return memory;
}

}  // namespace tmamba
