#include "launch/eval/loaded_model.h"

#include "data/checkpoint/checkpoint_folder.h"
#include "data/checkpoint/manifest.h"
#include "data/io/fs.h"
#include "data/io/sha256.h"
#include "launch/state/devices.h"

namespace tmamba {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kMaxManifestBytes = int64_t{256} << 20;

}  // namespace

SavedModel open_model(const fs::path& path, const std::vector<std::string>& overrides, RankFacts& facts) {
  SavedModel saved{.reader = std::make_unique<CheckpointReader>(checkpoint_at(path)), .config = {}, .state = {}};
  saved.state = read_state(*saved.reader);
  saved.config = parse_config(saved.state.config, saved.path().string() + " (configuration)", overrides);
  // The manifest has the checksums of all tensors. Ranks may read copies of the checkpoint.
  const std::string manifest = sha256_hex(read_text(saved.path() / kManifestName, kMaxManifestBytes));
  facts.must_agree("checkpoint", manifest, str(saved.path().string(), " (manifest ", manifest.substr(0, 12), ")"));
  facts.add(saved.config);
  return saved;
}

LoadedModel load_model(SavedModel saved, World& world) {
  LoadedModel loaded{.path = saved.path(),
                     .config = std::move(saved.config),
                     .state = std::move(saved.state),
                     .ops = {},
                     .table = {},
                     .buffer = {},
                     .params = {}};
  loaded.ops = ops_of(loaded.config, world);
  loaded.table = std::make_unique<ParameterTable>(loaded.config.model);
  const int64_t size = loaded.table->flat_size();
  loaded.buffer = Buffer({size}, loaded.config.dtype(), loaded.ops->device());
  loaded.params = loaded.buffer.tensor({size}, loaded.config.dtype());
  load_params(*saved.reader, *loaded.table, loaded.params);
  return loaded;
}

std::unique_ptr<Tokenizer> load_tokenizer_of(const TokenFile& file, const std::string& override_name) {
  const TokenFileInfo& info = file.info();
  const std::string name = !override_name.empty()           ? override_name
                           : info.tokenizer_file == "bytes" ? "bytes"
                                                            : (info.path.parent_path() / info.tokenizer_file).string();
  std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(name);
  if (tokenizer->hash() != info.tokenizer_hash) {
    throw UserError(str(info.path.string(), " was made with another tokenizer than ", name));
  }
  return tokenizer;
}

}  // namespace tmamba
