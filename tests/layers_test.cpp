// The dependency order of the folders (design.md section 1): reads every #include of every source file.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>

namespace {

namespace fs = std::filesystem;

// A folder of the project, the project headers it may include (by prefix), and the system headers it must not.
struct Layer {
  std::set<std::string> may_include;
  std::set<std::string> must_not_include;
};

const std::map<std::string, Layer> kLayers{
    {"kernels/base", {{"kernels/base/"}, {"mpi.h", "nccl.h", "hdf5.h", "cblas.h", "toml++"}}},
    {"kernels", {{"kernels/"}, {"mpi.h", "nccl.h", "hdf5.h", "toml++"}}},
    {"dist", {{"kernels/base/", "dist/"}, {"hdf5.h", "cblas.h", "toml++"}}},
    {"data", {{"kernels/base/", "dist/", "data/"}, {"nccl.h", "cblas.h", "cuda", "toml++"}}},
    {"model",
     {{"kernels/", "dist/exchange.h", "dist/layout.h", "dist/recompute.h", "dist/self_communicator.h", "model/"},
      {"mpi.h", "nccl.h", "hdf5.h", "cblas.h", "cuda", "toml++"}}},
    {"launch", {{"kernels/", "dist/", "data/", "model/", "launch/"}, {"mpi.h", "nccl.h", "hdf5.h", "cblas.h", "cuda"}}},
};

bool starts_with_any(const std::string& text, const std::set<std::string>& prefixes) {
  for (const std::string& prefix : prefixes) {
    if (text.starts_with(prefix)) return true;
  }
  return false;
}

// The layer of a file: the longest folder of kLayers that holds it.
std::string layer_of(const std::string& file) {
  std::string best;
  for (const auto& [folder, layer] : kLayers) {
    if (file.starts_with(folder + "/") && folder.size() > best.size()) best = folder;
  }
  return best;
}

TEST(Layers, EveryIncludePointsDown) {
  const fs::path root = TMAMBA_SOURCE_DIR;
  const std::regex include(R"(^\s*#\s*include\s*[<"]([^>"]+)[>"])");
  const std::set<std::string> extensions{".h", ".cpp", ".cu", ".cuh"};
  int files = 0;
  for (const char* top : {"kernels", "dist", "data", "model", "launch"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      if (!extensions.contains(entry.path().extension().string())) continue;
      ++files;
      const std::string file = fs::relative(entry.path(), root).string();
      const Layer& layer = kLayers.at(layer_of(file));
      std::ifstream in(entry.path());
      int number = 0;
      for (std::string line; std::getline(in, line);) {
        ++number;
        std::smatch match;
        if (!std::regex_search(line, match, include)) continue;
        const std::string header = match[1];
        const bool ours = starts_with_any(header, {"kernels/", "dist/", "data/", "model/", "launch/"});
        EXPECT_TRUE(!ours || starts_with_any(header, layer.may_include))
            << file << ":" << number << " includes " << header;
        EXPECT_FALSE(starts_with_any(header, layer.must_not_include))
            << file << ":" << number << " includes " << header;
      }
    }
  }
  EXPECT_GT(files, 50);
}

}  // namespace
