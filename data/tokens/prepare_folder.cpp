#include "data/tokens/prepare_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "data/io/fs.h"
#include "data/io/sha256.h"
#include "kernels/base/check.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {
constexpr const char* kWorkPrefix = ".prepare-";
constexpr int64_t kMaxDatasetFile = int64_t{64} << 20;

nlohmann::json read_dataset_file(const fs::path& path) {
  try {
    const auto json = nlohmann::json::parse(read_text(path, kMaxDatasetFile));
    if (json.is_object()) return json;
  } catch (const std::exception&) {
    // An unreadable dataset.json counts as one of a different data set.
  }
  return nlohmann::json::object();
}

std::string content_hash(const fs::path& path, const CorpusOptions& options) {
  Sha256 sha;
  CorpusHandler handler;
  handler.raw = [&](std::string_view block) { sha.add(block.data(), block.size()); };
  SkippedRecords skipped;
  read_corpus(path, options, handler, skipped);
  return sha.hex();
}

// Whether the input has the same content: yes if name, size and modification time agree; if only the time differs, by
// its hash.
bool same_input(const fs::path& path, const nlohmann::json& now, const nlohmann::json& before,
                const PrepareOptions& options) {
  const auto field = [&](const char* name) {
    return before.is_object() ? before.value(name, nlohmann::json()) : nlohmann::json();
  };
  if (now["name"] != field("name") || now["bytes"] != field("bytes")) return false;
  if (now["mtime_ns"] == field("mtime_ns")) return true;
  // In this order: C++20 compilers do not all take the other.
  return field("sha256") == content_hash(path, options.corpus);
}

bool same_inputs(const nlohmann::json& now, const nlohmann::json& before, const PrepareOptions& options) {
  if (!before.is_array() || before.size() != now.size()) return false;
  for (size_t i = 0; i < now.size(); ++i) {
    if (!same_input(options.inputs[i], now[i], before[i], options)) return false;
  }
  return true;
}

// How the existing data set differs from the wanted one, for the message; empty if it does not.
std::string difference(const PrepareOptions& options, const nlohmann::json& wanted, const nlohmann::json& there) {
  if (there.value("format", nlohmann::json()) != wanted["format"] ||
      there.value("version", nlohmann::json()) != wanted["version"]) {
    return "its dataset.json has another format or version";
  }
  // What data sets before these options were made with.
  const nlohmann::json defaults{{"format", "auto"}, {"on_error", "stop"}};
  const auto old_options = there.value("options", nlohmann::json::object());
  for (const auto& [key, value] : wanted["options"].items()) {
    if (!old_options.is_object() || old_options.value(key, defaults.value(key, nlohmann::json())) != value) {
      return key + " differs";
    }
  }
  if (there.value("tokenizer", nlohmann::json()) != wanted["tokenizer"]) return "the tokenizer differs";
  if (!same_inputs(wanted["inputs"], there.value("inputs", nlohmann::json()), options)) return "the inputs differ";
  return "";
}

bool files_are_there(const fs::path& output, const nlohmann::json& there) {
  const auto files = there.value("files", nlohmann::json());
  if (!files.is_array() || files.empty()) return false;
  for (const auto& file : files) {
    try {
      std::error_code error;
      const auto bytes = fs::file_size(output / file.at("name").get<std::string>(), error);
      if (error || bytes != file.at("bytes").get<uintmax_t>()) return false;
    } catch (const nlohmann::json::exception&) {
      return false;
    }
  }
  return true;
}

// Removes the work folders of killed runs, whose lock no process holds.
void remove_abandoned(const fs::path& output) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(output)) {
    if (entry.path().filename().string().starts_with(kWorkPrefix) && entry.is_directory() && !entry.is_symlink()) {
      found.push_back(entry.path());
    }
  }
  for (const fs::path& folder : found) {
    const int lock = open((folder / "lock").c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (lock < 0) continue;
    std::error_code ignored;
    if (flock(lock, LOCK_EX | LOCK_NB) == 0) fs::remove_all(folder, ignored);
    close(lock);
  }
}

void refuse_symlink_or_file(const fs::path& output) {
  std::error_code error;
  const auto status = fs::status(output, error);
  if (fs::exists(status) && !fs::is_directory(status))
    throw UserError(output.string() + ": is a file; the output must be a directory");
}
}  // namespace

nlohmann::json describe_input(const fs::path& path) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  const auto time = fs::last_write_time(path, error);
  if (error) throw UserError(path.string() + ": cannot be read: " + error.message());
  const auto since_epoch =
      std::chrono::duration_cast<std::chrono::nanoseconds>(fs::file_time_type::clock::to_sys(time).time_since_epoch());
  return {{"name", path.filename().string()}, {"bytes", bytes}, {"mtime_ns", since_epoch.count()}};
}

nlohmann::json find_finished(const PrepareOptions& options, const nlohmann::json& wanted) {
  refuse_symlink_or_file(options.output);
  const fs::path path = options.output / kDatasetFile;
  const std::string advice = "; choose another output directory, or replace it with --overwrite";
  if (!fs::exists(path)) {
    const bool leftover = fs::exists(options.output / "train.h5") || fs::exists(options.output / "valid.h5");
    if (leftover && !options.overwrite) {
      throw UserError(options.output.string() + ": has token files but no dataset.json that describes them" + advice);
    }
    return nullptr;
  }
  const auto there = read_dataset_file(path);
  const std::string differs = difference(options, wanted, there);
  if (differs.empty()) return files_are_there(options.output, there) ? there : nlohmann::json();
  if (options.overwrite) return nullptr;
  throw UserError(options.output.string() + ": has a different data set (" + differs + ")" + advice);
}

WorkFolder::WorkFolder(const fs::path& output) : output_(fs::absolute(output).lexically_normal()) {
  for (fs::path folder = output_; !folder.empty() && !fs::exists(folder); folder = folder.parent_path()) {
    if (folder.has_filename()) made_.insert(made_.begin(), folder);
  }
  std::error_code error;
  fs::create_directories(output_, error);
  if (error) throw UserError(output.string() + ": cannot be created: " + error.message());
  remove_abandoned(output_);
  path_ = output_ / (kWorkPrefix + random_nonce());
  make_folder(path_);
  lock_ = open((path_ / "lock").c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  // On network file systems without locks the folder of a killed run stays until somebody deletes it.
  if (lock_ >= 0 && flock(lock_, LOCK_EX | LOCK_NB) != 0) fs::remove(path_ / "lock", error);
}

WorkFolder::~WorkFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  if (lock_ >= 0) close(lock_);
  // rmdir fails for folders that are not empty, which must stay.
  for (auto folder = made_.rbegin(); folder != made_.rend(); ++folder) rmdir(folder->c_str());
}

void WorkFolder::publish(const std::vector<std::string>& files, const std::vector<std::string>& obsolete) {
  fs::remove(output_ / kDatasetFile);
  for (const auto& name : obsolete) fs::remove(output_ / name);
  sync_folder(output_);
  for (const auto& name : files) fs::rename(path_ / name, output_ / name);
  sync_folder(output_);
  fs::rename(path_ / kDatasetFile, output_ / kDatasetFile);
  sync_folder(output_);
}

}  // namespace tmamba
