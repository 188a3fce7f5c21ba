#include "launch/config/config.h"
#include "tests/fuzz/target.h"

namespace tmamba::fuzz {

namespace {

// Configurations are stored in checkpoints as text: reading that text must give the same values.
void check(RunConfig config) {
  validate(config.model);
  validate(config);
  validate_dtype(config);
  config.origin.clear();
  const std::string text = to_toml(config);
  RunConfig again = parse_config(text, "stored", {});
  again.origin.clear();
  require(to_toml(again) == text, "a stored configuration reads back as another one");
}

void bytes(const std::string& text) { check(parse_config(text, "fuzz.toml", {})); }
void file(const std::filesystem::path& path) { check(load_config(path, {})); }

}  // namespace

const Target config{"config", bytes, file};

}  // namespace tmamba::fuzz
