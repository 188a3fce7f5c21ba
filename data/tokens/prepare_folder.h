// The output folder of prepare(): detects an existing data set and publishes a new one atomically. Private to prepare*.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/tokens/prepare.h"

namespace tmamba {

inline constexpr const char* kDatasetFile = "dataset.json";

// The entry of an input file in dataset.json: name, bytes, mtime_ns. The caller adds sha256 of its decompressed
// content.
nlohmann::json describe_input(const std::filesystem::path& path);

// Compares the data set in `output` with `wanted`, the parts of dataset.json that are known before the text is read:
// format, options, tokenizer, inputs. Returns the existing dataset.json if it matches and its files exist. Returns null
// if there is no data set or `options.overwrite` permits replacing it. Throws UserError if there is a different one.
nlohmann::json find_finished(const PrepareOptions& options, const nlohmann::json& wanted);

// A hidden folder inside `output` for unfinished files. The destructor deletes it, and `output` too if the constructor
// created it and it is empty.
class WorkFolder {
 public:
  explicit WorkFolder(const std::filesystem::path& output);
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  // Deletes the `obsolete` files of `output`, then renames `files` into it in this order, dataset.json last.
  void publish(const std::vector<std::string>& files, const std::vector<std::string>& obsolete);

 private:
  std::filesystem::path output_;
  std::filesystem::path path_;
  std::vector<std::filesystem::path> made_;  // folders that the constructor created, outermost first
  int lock_ = -1;                            // descriptor of the lock that marks the folder as in use
};

}  // namespace tmamba
