#include <algorithm>

#include "data/checkpoint/checkpoint_folder.h"
#include "data/io/fs.h"
#include "dist/comm/collective_guard.h"
#include "dist/comm/self_communicator.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

fs::path free_damaged_name(const fs::path& path) {
  const std::string base = path.string() + ".damaged";
  if (!fs::exists(fs::symlink_status(base))) return base;
  for (int i = 2;; ++i) {
    const std::string name = base + "-" + std::to_string(i);
    if (!fs::exists(fs::symlink_status(name))) return name;
  }
}

}  // namespace

std::string damage_of(const fs::path& path, int64_t part, int64_t parts) {
  try {
    const CheckpointReader reader(path, FileCheck::when_read);  // verify() opens the files
    if (const std::string wrong = misplaced(reader); !wrong.empty()) return wrong;
    const auto problems = reader.verify(part, parts);
    return problems.empty() ? "" : problems.front();
  } catch (const DamagedCheckpoint& error) {
    return error.what();
  }
}

std::optional<fs::path> latest_checkpoint(Communicator& comm, const fs::path& checkpoints,
                                          const std::function<void(const fs::path&, const std::string&)>& on_damage) {
  CollectiveGuard guard(comm);
  guard.on_root([&] { recover_set_aside(checkpoints); });
  while (true) {
    // All ranks use rank 0's list, because other nodes may see an older state of the file system.
    std::string name;
    guard.on_root([&] {
      const auto candidates = list_checkpoints(checkpoints);
      if (!candidates.empty()) name = candidates.back().filename().string();
    });
    name = guard.broadcast(name);
    if (name.empty()) return std::nullopt;
    const fs::path path = checkpoints / name;
    std::string damage;
    guard.on_all([&] { damage = damage_of(path, comm.rank(), comm.size()); });
    const auto all = guard.gather(damage);
    const auto first = std::find_if(all.begin(), all.end(), [](const std::string& text) { return !text.empty(); });
    if (first == all.end()) return path;
    guard.on_root([&] {
      if (on_damage) on_damage(path, *first);
      rename_new(path, free_damaged_name(path));
      sync_folder(checkpoints);
    });
  }
}

std::optional<fs::path> latest_checkpoint(const fs::path& checkpoints,
                                          const std::function<void(const fs::path&, const std::string&)>& on_damage) {
  SelfCommunicator self("self");
  return latest_checkpoint(self, checkpoints, on_damage);
}

}  // namespace tmamba
