#include "data/checkpoint/checkpoint_folder.h"

#include <algorithm>
#include <iomanip>
#include <system_error>

#include "data/checkpoint/manifest.h"
#include "data/io/fs.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kPrefix = "step-";
constexpr int kDigits = 8;
constexpr const char* kLatest = "latest";

// Removes a folder and its content. The manifest is removed first and durably, so that a crash leaves no folder that
// looks complete.
void remove_tree(const fs::path& folder) {
  const fs::path manifest = folder / kManifestName;
  std::error_code error;
  if (!fs::is_symlink(folder) && fs::exists(fs::symlink_status(manifest))) {
    fs::remove(manifest, error);
    if (error) throw FileError("remove", manifest, error.value());
    sync_folder(folder);
  }
  fs::remove_all(folder, error);
  if (error) throw FileError("remove", folder, error.value());
}

// NAME of "NAME" + mark + NONCE if it is a checkpoint's name or "latest"; else empty.
std::string owner_of(const std::string& name, std::string_view mark) {
  const size_t at = name.find(mark);
  if (at == std::string::npos) return "";
  const std::string owner = name.substr(0, at);
  return owner == kLatest || step_of_name(owner) ? owner : "";
}

bool is_left_over(const std::string& name, const std::string& nonce) {
  if (name.ends_with("-" + nonce)) return false;
  return !owner_of(name, ".tmp-").empty() || !owner_of(name, ".old-").empty();
}

bool is_permanent(const fs::path& path, const SaveOptions& options) {
  return options.keep_every > 0 && step_of_name(path.filename().string()).value() % options.keep_every == 0;
}

// The step in a folder's name, for any form of its path, such as "step-00000005/" or ".".
std::optional<int64_t> step_of_folder(const fs::path& folder) {
  const fs::path full = fs::absolute(folder).lexically_normal();
  return step_of_name((full.has_filename() ? full : full.parent_path()).filename().string());
}

// For file systems that cannot swap two names. After a crash between the renames, recover_set_aside() restores the old
// checkpoint.
void replace_by_renames(const fs::path& temporary, const fs::path& final_path, const fs::path& aside) {
  rename_new(final_path, aside);
  try {
    rename_new(temporary, final_path);
    sync_folder(final_path.parent_path());
  } catch (...) {
    if (fs::exists(final_path)) rename_new(final_path, temporary);
    rename_new(aside, final_path);
    throw;
  }
  rename_new(aside, temporary);
}

}  // namespace

std::string checkpoint_name(int64_t step) {
  std::ostringstream name;
  name << kPrefix << std::setw(kDigits) << std::setfill('0') << step;
  return name.str();
}

std::optional<int64_t> step_of_name(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const std::string digits = name.substr(kPrefix.size());
  if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != std::string::npos) {
    return std::nullopt;
  }
  const int64_t step = std::stoll(digits);
  if (checkpoint_name(step) != name) return std::nullopt;
  return step;
}

std::string temporary_name(int64_t step, const std::string& nonce) { return checkpoint_name(step) + ".tmp-" + nonce; }

fs::path checkpoint_at(const fs::path& path) {
  if (!fs::exists(path)) throw UserError(str(path.string(), ": no such checkpoint or run directory"));
  if (fs::is_regular_file(path) && path.filename() == kLatest) {
    std::string name = read_text(fs::canonical(path), 256);
    while (name.ends_with('\n')) name.pop_back();
    if (!step_of_name(name)) throw UserError(str(path.string(), ": does not contain the name of a checkpoint"));
    return path.parent_path() / name;
  }
  if (!fs::is_directory(path))
    throw UserError(str(path.string(), ": is a file; expected a checkpoint or run directory"));
  if (fs::exists(path / kManifestName) || step_of_folder(path)) return path;
  const fs::path folder = fs::exists(path / "checkpoints") ? path / "checkpoints" : path;
  const std::vector<fs::path> all = list_checkpoints(folder);
  if (all.empty()) throw UserError(str(folder.string(), ": contains no complete checkpoint"));
  return all.back();
}

std::string misplaced(const CheckpointReader& reader) {
  const auto step = step_of_folder(reader.path());
  if (!step || *step == reader.step()) return "";
  return str(reader.path().string(), ": the manifest is of step ", reader.step(), ", the directory's name of step ",
             *step);
}

void publish_checkpoint(const fs::path& temporary, const fs::path& final_path, const std::string& nonce) {
  const bool replaces = fs::exists(fs::symlink_status(final_path));
  if (replaces && !exchange(temporary, final_path)) {
    replace_by_renames(temporary, final_path, final_path.string() + ".old-" + nonce);
    return;
  }
  if (!replaces) rename_new(temporary, final_path);
  try {
    sync_folder(final_path.parent_path());
  } catch (...) {
    // The rename may not be durable, so it is undone.
    if (replaces) {
      exchange(temporary, final_path);
    } else {
      rename_new(final_path, temporary);
    }
    throw;
  }
}

void recover_set_aside(const fs::path& checkpoints) {
  for (const fs::path& path : folder_entries(checkpoints)) {
    const std::string owner = owner_of(path.filename().string(), ".old-");
    if (owner.empty() || fs::exists(checkpoints / owner)) continue;
    rename_new(path, checkpoints / owner);
    sync_folder(checkpoints);
  }
}

void remove_checkpoint(const fs::path& path, const std::string& nonce) {
  const fs::path hidden = path.string() + ".tmp-" + nonce;
  rename_new(path, hidden);
  sync_folder(path.parent_path());
  remove_tree(hidden);
}

std::vector<fs::path> beyond_retention(const fs::path& current, const SaveOptions& options) {
  std::vector<fs::path> others = list_checkpoints(current.parent_path()), out;
  std::erase(others, current);
  int64_t kept = 1;
  for (auto path = others.rbegin(); path != others.rend(); ++path) {
    if (options.keep == 0 || kept++ < options.keep || is_permanent(*path, options)) continue;
    out.push_back(*path);
  }
  std::reverse(out.begin(), out.end());
  return out;
}

VerifiedRetention verified_retention(const fs::path& checkpoints, const SaveOptions& options) {
  const std::vector<fs::path> all = list_checkpoints(checkpoints);
  VerifiedRetention found;
  for (auto path = all.rbegin(); path != all.rend(); ++path) {
    if (options.keep == 0 || found.kept < options.keep) {
      const std::string problem = damage_of(*path);
      if (problem.empty()) {
        ++found.kept;
      } else {
        found.damaged.push_back({*path, problem});
      }
    } else if (is_permanent(*path, options)) {
      ++found.kept;
    } else {
      found.beyond.push_back(*path);
    }
  }
  std::reverse(found.beyond.begin(), found.beyond.end());
  return found;
}

std::vector<std::string> tidy_checkpoints(const fs::path& current, const SaveOptions& options,
                                          const std::string& nonce) {
  std::vector<std::string> problems;
  const auto attempt = [&](const std::function<void()>& work) {
    try {
      work();
    } catch (const std::exception& error) {
      problems.emplace_back(error.what());
    }
  };
  const fs::path folder = current.parent_path();
  attempt([&] { replace_text_durably(folder / kLatest, current.filename().string() + "\n", nonce); });
  attempt([&] {
    for (const fs::path& path : beyond_retention(current, options)) attempt([&] { remove_checkpoint(path, nonce); });
  });
  attempt([&] {
    const fs::path replaced = current.string() + ".tmp-" + nonce;
    if (fs::exists(fs::symlink_status(replaced))) remove_tree(replaced);
    for (const fs::path& path : folder_entries(folder)) {
      if (is_left_over(path.filename().string(), nonce)) attempt([&] { remove_tree(path); });
    }
  });
  return problems;
}

std::vector<fs::path> list_checkpoints(const fs::path& checkpoints) {
  std::vector<std::pair<int64_t, fs::path>> found;
  for (const fs::path& path : folder_entries(checkpoints)) {
    std::error_code error;
    const auto step = step_of_name(path.filename().string());
    if (step && fs::is_regular_file(path / kManifestName, error)) found.emplace_back(*step, path);
  }
  std::sort(found.begin(), found.end());
  std::vector<fs::path> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

}  // namespace tmamba
