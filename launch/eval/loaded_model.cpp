#include "launch/eval/loaded_model.h"

#include "data/checkpoint/checkpoint_folder.h"
#include "launch/state/devices.h"

namespace tmamba {

namespace fs = std::filesystem;

LoadedModel load_model(const fs::path& path, const std::vector<std::string>& overrides, World* world) {
  LoadedModel loaded{
      .path = checkpoint_at(path), .config = {}, .state = {}, .ops = {}, .table = {}, .buffer = {}, .params = {}};
  const CheckpointReader reader(loaded.path);
  loaded.state = read_state(reader);
  loaded.config = parse_config(loaded.state.config, loaded.path.string() + " (configuration)", overrides);
  loaded.ops = ops_of(loaded.config, world);
  loaded.table = std::make_unique<ParameterTable>(loaded.config.model);
  const int64_t size = loaded.table->flat_size();
  loaded.buffer = Buffer({size}, loaded.config.dtype(), loaded.ops->device());
  loaded.params = loaded.buffer.tensor({size}, loaded.config.dtype());
  load_params(reader, *loaded.table, loaded.params);
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
