// The dependency order of the folders: reads every #include of every source file. What a folder may include follows
// from the CMake targets: the headers of its own target and of those that it links, directly or through others.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "tests/source_dir.h"

namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

bool starts_with_any(const std::string& text, const Names& prefixes) {
  for (const std::string& prefix : prefixes) {
    if (text.starts_with(prefix)) return true;
  }
  return false;
}

// folder -> folders of the targets that it links. CMake writes a line "folder target links..." for each library.
std::map<std::string, Names> linked_folders() {
  std::map<std::string, std::string> folder_of;
  std::map<std::string, Names> links;
  std::ifstream in(TMAMBA_LAYERS);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string folder, target;
    words >> folder >> target;
    if (folder.starts_with("tests")) continue;
    folder_of[target] = folder;
    for (std::string link; words >> link;) links[folder].insert(link);
    links[folder];
  }
  std::map<std::string, Names> folders;
  for (const auto& [folder, targets] : links) {
    for (const std::string& target : targets) {
      if (folder_of.contains(target)) folders[folder].insert(folder_of.at(target));
    }
    folders[folder];
  }
  return folders;
}

// The target's folder that a file belongs to: the nearest folder above it that has one; "" for launch/main.cpp and the
// like, which belong to no library.
std::string folder_of(fs::path file, const std::map<std::string, Names>& folders) {
  for (file = file.parent_path(); !file.empty(); file = file.parent_path()) {
    if (folders.contains(file.string())) return file.string();
  }
  return "";
}

// Adds what `folder` links through others; a folder that is met on its own path is a cycle.
void add_reachable(const std::string& folder, const std::map<std::string, Names>& folders, Names& path,
                   Names& reached) {
  ASSERT_TRUE(path.insert(folder).second) << folder << " links itself through other folders";
  for (const std::string& next : folders.at(folder)) {
    reached.insert(next);
    add_reachable(next, folders, path, reached);
  }
  path.erase(folder);
}

// Libraries that a top-level folder keeps away from.
const std::map<std::string, Names> kForbiddenSystemHeaders{
    {"kernels", {"mpi.h", "nccl.h", "hdf5.h", "toml++"}},
    {"dist", {"hdf5.h", "cblas.h", "toml++"}},
    {"data", {"nccl.h", "cblas.h", "cuda", "toml++"}},
    {"model", {"mpi.h", "nccl.h", "hdf5.h", "cblas.h", "cuda", "toml++"}},
    {"launch", {"mpi.h", "nccl.h", "hdf5.h", "cblas.h", "cuda"}},
};

// The model reaches other ranks through these alone, and knows no communicator.
const Names kHeadersOfDistForModel{"dist/sequence/exchange.h", "dist/sequence/layout.h", "dist/planner/recompute.h",
                                   "dist/comm/self_communicator.h"};

const Names kSourceExtensions{".h", ".cpp", ".cu", ".cuh"};

TEST(Layers, EveryIncludePointsDown) {
  const fs::path root = TMAMBA_SOURCE_DIR;
  const std::map<std::string, Names> folders = linked_folders();
  const std::regex include(R"(^\s*#\s*include\s*[<"]([^>"]+)[>"])");
  int files = 0;
  for (const auto& [top, forbidden] : kForbiddenSystemHeaders) {
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      if (!kSourceExtensions.contains(entry.path().extension().string())) continue;
      ++files;
      const std::string file = fs::relative(entry.path(), root).string();
      std::ifstream in(entry.path());
      int number = 0;
      for (std::string line; std::getline(in, line);) {
        ++number;
        std::smatch match;
        if (!std::regex_search(line, match, include)) continue;
        const std::string header = match[1];
        const std::string where = file + ":" + std::to_string(number) + " includes " + header;
        EXPECT_FALSE(starts_with_any(header, forbidden)) << where;
        const std::string from = folder_of(file, folders), to = folder_of(header, folders);
        if (to.empty() || to == from || from.empty()) continue;
        if (from == "model" && to.starts_with("dist")) {
          EXPECT_TRUE(kHeadersOfDistForModel.contains(header)) << where;
          continue;
        }
        Names path, reached;
        add_reachable(from, folders, path, reached);
        EXPECT_TRUE(reached.contains(to)) << where << ", but " << from << " does not link " << to;
      }
    }
  }
  EXPECT_GT(files, 400);
}

TEST(Layers, EveryFolderBelongsToALibrary) {
  const std::map<std::string, Names> folders = linked_folders();
  for (const auto& [folder, links] : folders) {
    EXPECT_TRUE(fs::is_directory(fs::path(TMAMBA_SOURCE_DIR) / folder)) << folder;
    Names path, reached;
    add_reachable(folder, folders, path, reached);
  }
  for (const char* folder : {"kernels/base", "dist/comm", "data/io", "model", "launch/train"}) {
    EXPECT_TRUE(folders.contains(folder)) << folder;
  }
}

// Longer files are split along a seam.
TEST(Layers, NoFileIsLong) {
  for (const char* top : {"kernels", "dist", "data", "model", "launch", "tests"}) {
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(TMAMBA_SOURCE_DIR) / top)) {
      if (!kSourceExtensions.contains(entry.path().extension().string())) continue;
      const std::string file = fs::relative(entry.path(), TMAMBA_SOURCE_DIR).string();
      std::ifstream in(entry.path());
      const auto lines = std::count(std::istreambuf_iterator<char>(in), {}, '\n');
      EXPECT_LE(lines, 400) << file << " has " << lines << " lines";
    }
  }
}

// A reader finds a file by its folder, not by searching a long list.
TEST(Layers, NoFolderIsLong) {
  std::map<fs::path, int> files;
  for (const char* top : {"kernels", "dist", "data", "model", "launch", "tests"}) {
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(TMAMBA_SOURCE_DIR) / top)) {
      if (entry.is_regular_file() && entry.path().string().find("fuzz/bad") == std::string::npos) {
        ++files[entry.path().parent_path()];
      }
    }
  }
  for (const auto& [folder, count] : files) EXPECT_LE(count, 40) << folder;
}

}  // namespace
