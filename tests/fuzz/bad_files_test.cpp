// Every bad file (those of bad/, and those made here) is refused with an error that names it, without other exceptions
// and with little memory. bad/NAME.input are inputs that once failed under a fuzzer; they must not crash.
#include "tests/fuzz/bad_files.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <fstream>
#include <sstream>
#include <vector>

#include "data/checkpoint/manifest.h"
#include "tests/data/temp_folder.h"
#include "tests/fuzz/target.h"
#include "tests/source_dir.h"

namespace tmamba::fuzz {
namespace {

namespace fs = std::filesystem;
using testing_files::read_file;
using testing_files::TempFolder;

#ifdef __SANITIZE_ADDRESS__
constexpr bool kCountsMemory = false;  // the sanitizer's shadow memory takes terabytes of addresses
#else
constexpr bool kCountsMemory = true;
#endif

// While this object exists, the process may allocate at most `bytes` more memory.
class MemoryLimit {
 public:
  explicit MemoryLimit(rlim_t bytes) {
    if (!kCountsMemory) return;
    std::ifstream statm("/proc/self/statm");
    rlim_t pages = 0;
    statm >> pages;
    getrlimit(RLIMIT_AS, &old_);
    const rlimit now{pages * 4096 + bytes, old_.rlim_max};
    if (pages == 0 || setrlimit(RLIMIT_AS, &now) != 0) throw std::runtime_error("cannot limit the memory");
  }
  ~MemoryLimit() {
    if (kCountsMemory) setrlimit(RLIMIT_AS, &old_);
  }
  MemoryLimit(const MemoryLimit&) = delete;

 private:
  rlimit old_{};
};

std::vector<fs::path> entries(const fs::path& folder) {
  std::vector<fs::path> out;
  if (!fs::exists(folder)) return out;
  for (const auto& entry : fs::directory_iterator(folder)) out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  return out;
}

// `named`: the name of the bad file, which the message must contain.
void expect_refused(const Target& target, const fs::path& file, const std::string& named) {
  SCOPED_TRACE(str(target.name, "/", file.filename().string()));
  const rlim_t bytes = fs::is_regular_file(file) ? fs::file_size(file) : 0;
  try {
    const MemoryLimit limit(2 * bytes + (rlim_t{64} << 20));
    target.file(file);
    ADD_FAILURE() << "was not refused";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(named), std::string::npos) << error.what();
    EXPECT_LT(std::string(error.what()).size(), 4096u);
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another exception: " << error.what();
  }
}

// The committed files with their count, so that a missing directory fails the test.
int refuse_committed(const Target& target) {
  int refused = 0;
  for (const fs::path& file : entries(fs::path(TMAMBA_SOURCE_DIR) / "tests/fuzz/bad" / target.name)) {
    if (file.extension() == ".input") {
      SCOPED_TRACE(file.string());
      try {
        target.bytes(read_file(file));
      } catch (const Error&) {
      }
      continue;
    }
    expect_refused(target, file, file.filename().string());
    ++refused;
  }
  return refused;
}

TEST(BadFiles, Configurations) { EXPECT_GE(refuse_committed(config), 20); }
TEST(BadFiles, Options) { EXPECT_GE(refuse_committed(options), 30); }
TEST(BadFiles, Safetensors) { EXPECT_GE(refuse_committed(safetensors), 20); }
TEST(BadFiles, Corpora) { EXPECT_GE(refuse_committed(corpus), 16); }
TEST(BadFiles, Tokenizers) { EXPECT_GE(refuse_committed(tokenizer), 8); }

// NAME.json is a manifest without its seal, NAME.sealed one with its seal.
TEST(BadFiles, Manifests) {
  const TempFolder folder;
  int refused = 0;
  for (const fs::path& file : entries(fs::path(TMAMBA_SOURCE_DIR) / "tests/fuzz/bad/manifest")) {
    const std::string text = read_file(file);
    if (file.extension() == ".input") {
      EXPECT_NO_FATAL_FAILURE(try { manifest.bytes(text); } catch (const Error&){});
      continue;
    }
    const fs::path checkpoint = folder / file.stem().string();
    fs::create_directory(checkpoint);
    testing_files::write_file(checkpoint / kManifestName, file.extension() == ".sealed" ? text : seal_manifest(text));
    expect_refused(manifest, checkpoint, (checkpoint / kManifestName).string());
    ++refused;
  }
  EXPECT_GE(refused, 35);
}

TEST(BadFiles, Hdf5) {
  const TempFolder folder;
  write_bad_hdf5(folder.path());
  for (const Target* target : {&token_file, &hdf5_export}) {
    EXPECT_NO_THROW(target->file(folder / (target == &token_file ? "whole-tokens.h5" : "whole-export.h5")));
    refuse_committed(*target);
    const auto files = entries(folder / target->name);
    EXPECT_GE(files.size(), 30u);
    for (const fs::path& file : files) expect_refused(*target, file, file.filename().string());
  }
}

TEST(BadFiles, Checkpoints) {
  const TempFolder folder;
  write_bad_checkpoints(folder.path());
  EXPECT_NO_THROW(checkpoint.file(folder / "whole/step-00000007"));
  const auto all = entries(folder / checkpoint.name);
  EXPECT_GE(all.size(), 18u);
  for (const fs::path& path : all) expect_refused(checkpoint, path, path.filename().string());
  refuse_committed(checkpoint);
}

}  // namespace
}  // namespace tmamba::fuzz
