#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>
#include <vector>

#include "data/checkpoint/checkpoint.h"
#include "data/checkpoint/manifest.h"
#include "dist/comm/self_communicator.h"
#include "tests/fuzz/bad_files.h"

namespace tmamba::fuzz {

namespace {

namespace fs = std::filesystem;

fs::path whole_checkpoint(const fs::path& folder, float first) {
  std::vector<float> numbers(600);
  std::iota(numbers.begin(), numbers.end(), first);
  const std::vector<TensorSlice> slices{
      {"model/w", {20, 30}, {0, 0}, ConstTensor(numbers.data(), {20, 30}, DType::f32)}};
  SelfCommunicator self("self");
  return save_checkpoint(self, folder, 7, slices, {{"step", 7}}, {}).path;
}

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

void put(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

}  // namespace

void write_bad_checkpoints(const fs::path& folder) {
  const fs::path whole = whole_checkpoint(folder / "whole", 0.5f), other = whole_checkpoint(folder / "other", 7.5f);
  const std::string shard = "rank-00000.h5";
  const auto spoiled = [&](const char* name, const std::function<void(const fs::path&)>& spoil) {
    const fs::path path = folder / "checkpoint" / name;
    fs::create_directories(path.parent_path());
    fs::copy(whole, path);
    spoil(path);
  };
  const auto changed = [&](const std::string& file, const std::function<void(std::string&)>& change) {
    return [=](const fs::path& path) {
      std::string bytes = read_file(path / file);
      change(bytes);
      put(path / file, bytes);
    };
  };
  const auto replaced = [&](const std::string& file, const std::function<void(const fs::path&)>& by) {
    return [=](const fs::path& path) {
      fs::remove(path / file);
      by(path / file);
    };
  };
  const auto pipe = [](const fs::path& path) {
    if (::mkfifo(path.c_str(), 0600) != 0) throw std::runtime_error("cannot make a pipe");
  };
  const size_t number = read_file(whole / shard).size() - 100;  // inside the tensor
  spoiled("shard-missing", [&](const fs::path& path) { fs::remove(path / shard); });
  spoiled("shard-cut-by-one-byte", changed(shard, [](std::string& bytes) { bytes.pop_back(); }));
  spoiled("shard-longer", changed(shard, [](std::string& bytes) { bytes += '\0'; }));
  spoiled("shard-with-one-bit-flipped", changed(shard, [=](std::string& bytes) { bytes[number] ^= 1; }));
  spoiled("shard-with-a-bit-flipped-outside-its-tensors", changed(shard, [](std::string& bytes) { bytes[20] ^= 1; }));
  spoiled("shard-of-zeros", changed(shard, [](std::string& bytes) { bytes.assign(bytes.size(), '\0'); }));
  spoiled("shard-of-another-checkpoint", [&](const fs::path& path) {
    fs::copy_file(other / shard, path / shard, fs::copy_options::overwrite_existing);
  });
  spoiled("shard-is-a-link-to-another-file",
          replaced(shard, [](const fs::path& path) { fs::create_symlink("/etc/passwd", path); }));
  spoiled("shard-is-a-link-to-itself", replaced(shard, [](const fs::path& path) { fs::create_symlink(path, path); }));
  spoiled("shard-is-a-folder", replaced(shard, [](const fs::path& path) { fs::create_directory(path); }));
  spoiled("shard-is-a-pipe", replaced(shard, pipe));
  spoiled("shard-is-a-device", replaced(shard, [](const fs::path& path) { fs::create_symlink("/dev/zero", path); }));
  spoiled("manifest-missing", [](const fs::path& path) { fs::remove(path / kManifestName); });
  spoiled("manifest-of-another-checkpoint", [&](const fs::path& path) {
    fs::copy_file(other / kManifestName, path / kManifestName, fs::copy_options::overwrite_existing);
  });
  spoiled("manifest-with-one-bit-flipped",
          changed(kManifestName, [](std::string& text) { text[text.size() / 2] ^= 1; }));
  spoiled("manifest-is-a-pipe", replaced(kManifestName, pipe));
  spoiled("manifest-is-endless",
          replaced(kManifestName, [](const fs::path& path) { fs::create_symlink("/dev/zero", path); }));
  spoiled("manifest-is-a-folder", replaced(kManifestName, [](const fs::path& path) { fs::create_directory(path); }));
}

}  // namespace tmamba::fuzz
