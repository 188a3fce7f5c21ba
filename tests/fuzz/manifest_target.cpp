#include "data/checkpoint/checkpoint.h"
#include "data/checkpoint/manifest.h"
#include "tests/fuzz/target.h"

namespace tmamba::fuzz {

namespace {

// A manifest ends with its own hash, which a fuzzer cannot guess: append it unless the bytes begin with '!'.
void bytes(const std::string& input) {
  const bool raw = input.starts_with('!');
  const Manifest manifest = parse_manifest(raw ? input.substr(1) : seal_manifest(input));
  const std::string text = manifest_text(manifest);
  require(manifest_text(parse_manifest(text)) == text, "a manifest that is written again is another one");
}

// A checkpoint directory.
void file(const std::filesystem::path& path) { const CheckpointReader reader(path, FileCheck::when_read); }

}  // namespace

const Target manifest{"manifest", bytes, file};

}  // namespace tmamba::fuzz
