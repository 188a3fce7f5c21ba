// The output folder of prepare(): what it holds already, and how new files appear in it all at once. For prepare*.cpp.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/tokens/prepare.h"

namespace tmamba {

inline constexpr const char* kDatasetFile = "dataset.json";

// An input file as dataset.json names it: name, bytes, mtime_ns; sha256 of its (decompressed) content is added later.
nlohmann::json describe_input(const std::filesystem::path& path);

// Looks at what `output` holds. `wanted` is the dataset.json to be, with everything that is known before the text is
// read: format, options, tokenizer, inputs. Returns the dataset.json that is there where it is the wanted one and its
// files are there; null where the folder holds no data set, or one that `options.overwrite` gives up. Throws UserError
// where it holds another.
nlohmann::json find_finished(const PrepareOptions& options, const nlohmann::json& wanted);

// A hidden folder inside `output` for files in the making. Whatever is still in it when it is destroyed is deleted, and
// so is `output` where it was made here and is empty.
class WorkFolder {
 public:
  explicit WorkFolder(const std::filesystem::path& output);
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  // Renames the files into `output`, in this order, dataset.json last; deletes `obsolete` files there before that.
  void publish(const std::vector<std::string>& files, const std::vector<std::string>& obsolete);

 private:
  std::filesystem::path output_;
  std::filesystem::path path_;
  std::vector<std::filesystem::path> made_;  // folders that were made on the way, outermost first
  int lock_ = -1;
};

}  // namespace tmamba
