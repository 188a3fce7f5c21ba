// Writes valid files of every kind as seeds of the fuzzers. usage: fuzz_seeds FOLDER
#include <array>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <sstream>
#include <vector>

#include "data/checkpoint/checkpoint.h"
#include "data/checkpoint/manifest.h"
#include "data/checkpoint/tensor_source.h"
#include "data/hdf5/h5.h"
#include "data/tokens/token_file.h"
#include "data/tokens/tokenizer.h"
#include "dist/comm/self_communicator.h"
#include "launch/cli/options.h"
#include "launch/config/config.h"
#include "tests/fuzz/target.h"

namespace tmamba::fuzz {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

void write_file(const fs::path& path, const std::string& content) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

void write_configs(const fs::path& folder) {
  write_file(folder / "defaults.toml", to_toml(parse_config("", "defaults", {})));
  write_file(folder / "sections.toml",
             "[model]\nschedule = [0, 128, \"1/4\", \"1/1\"]\ndim = 64\n[checkpoint]\nevery = \"auto\"\n"
             "[train]\nlr = 3e-4\nbetas = [0.9, 0.95]\nsteps = 10\n[run]\ndir = 'a\\b'\n[data]\ntrain = \"\"\"x\"\"\"");
  write_file(folder / "lists.toml",
             "[[data.validation]]\nname = \"a\"\npath = \"b\"\n[[data.validation]]\npath = 'c'\nname = \"d-2\"\n");
  write_file(folder / "dotted.toml", "model.dim = 0x40\ntrain = {lr = 1.0, steps = 1_000}\nrun.dir = \"\\u00e9\"\n");
}

// A verb's letter and an argument a line, as the target reads them.
void write_options(const fs::path& folder) {
  const std::vector<VerbOptions>& verbs = all_verb_options();
  for (size_t i = 0; i < verbs.size(); ++i) {
    std::string text(1, static_cast<char>('A' + (i + verbs.size() - 'A' % verbs.size()) % verbs.size()));
    for (const Option& argument : verbs[i].arguments) {
      text += "\n" + (argument.choices.empty() ? "." : argument.choices.front());
    }
    for (const Option& option : verbs[i].options) {
      text += "\n--" + option.long_name();
      if (option.kind != Option::Kind::flag) text += "\n" + (option.value.empty() ? "1" : option.value);
    }
    write_file(folder / str("verb-", i), text);
  }
}

// Small, so that most mutations change structure and not numbers.
fs::path write_checkpoints(const fs::path& folder) {
  std::vector<float> rows(24);
  std::iota(rows.begin(), rows.end(), 0.5f);
  std::vector<uint16_t> halves(6, 0x3F80);
  const std::vector<TensorSlice> slices{{"model/w", {4, 6}, {0, 0}, ConstTensor(rows.data(), {2, 6}, DType::f32)},
                                        {"model/w", {4, 6}, {2, 0}, ConstTensor(rows.data() + 12, {2, 6}, DType::f32)},
                                        {"model/b", {6}, {0}, ConstTensor(halves.data(), {6}, DType::bf16)}};
  SelfCommunicator self("self");
  return save_checkpoint(self, folder, 7, slices, {{"step", 7}, {"note", "seed"}}, {}).path;
}

// A token file with small chunks, so that most of its bytes are structure.
void write_small_token_file(const fs::path& path, const H5DatasetOptions& options, int64_t tokens) {
  auto file = H5File::create(path, H5Format::checksummed);
  const std::vector<uint16_t> bytes(257, 1), values(static_cast<size_t>(tokens), 65);
  const int64_t start = 0;
  file.create_dataset("token_bytes", H5Type::u16, {257}, {.chunk = {64}, .fletcher32 = true})
      .write(std::array<int64_t, 1>{0}, std::array<int64_t, 1>{257}, H5Type::u16, bytes.data());
  file.create_dataset("tokens", H5Type::u16, {tokens}, options)
      .write(std::array<int64_t, 1>{0}, std::array{tokens}, H5Type::u16, values.data());
  file.create_dataset("documents", H5Type::i64, {1}, {.chunk = {4}, .growable = true})
      .write(std::array<int64_t, 1>{0}, std::array<int64_t, 1>{1}, H5Type::i64, &start);
  for (const char* name : {"source_hash", "tokenizer_kind", "tokenizer_hash", "tokenizer_file", "split"}) {
    file.set_attribute("/", name, "bytes");
  }
  file.set_attribute("/", "format", "transmamba tokens");
  file.set_attribute("/", "version", int64_t{1});
  file.set_attribute("/", "vocab_size", int64_t{257});
  file.set_attribute("/", "document_end", int64_t{256});
  file.set_attribute("/", "source_bytes", tokens);
  file.close();
}

void write_token_files(const fs::path& folder) {
  fs::create_directories(folder);
  write_small_token_file(folder / "growing.h5", {.chunk = {8}, .growable = true, .fletcher32 = true}, 500);
  write_small_token_file(folder / "fixed.h5", {.chunk = {8}, .deflate = 6}, 100);
  write_small_token_file(folder / "one-chunk.h5", {.chunk = {100}, .fletcher32 = true}, 100);
  write_small_token_file(folder / "contiguous.h5", {}, 100);
  for (const int64_t vocab : {300}) {
    TokenFileInfo info;
    info.vocab_size = vocab;
    info.document_end = vocab - 1;
    info.tokenizer_kind = "bytes", info.tokenizer_hash = "abc", info.tokenizer_file = "bytes", info.split = "train";
    const std::vector<uint16_t> token_bytes(static_cast<size_t>(vocab), 1);
    TokenFileWriter writer(folder / (std::to_string(vocab) + ".h5"), info, token_bytes);
    for (int document = 0; document < 3; ++document) {
      writer.append(std::vector<int32_t>(20, document));
      writer.end_document();
    }
    writer.close(60, "feed");
  }
}

void write_tokenizers(const fs::path& folder) {
  fs::create_directories(folder);
  load_tokenizer("bytes")->save(folder / "bytes.json");
  const fs::path text = folder / "text";
  std::ofstream out(text);
  std::mt19937 random(1);
  for (int i = 0; i < 4000; ++i) {
    for (int length = 1 + static_cast<int>(random() % 9); length > 0; --length) {
      out << static_cast<char>('a' + random() % 6);
    }
    out << (random() % 8 == 0 ? '\n' : ' ');
  }
  out.close();
  for (const char* type : {"bpe", "unigram"}) {
    train_sentencepiece({text}, folder / (std::string(type) + ".model"), {.vocab_size = 320, .model_type = type});
  }
  fs::remove(text);
}

void write_corpora(const fs::path& folder) {
  const std::string lines =
      "{\"text\": \"a \\u00e9\\ud83d\\ude00\", \"n\": [1e5, NaN, {\"b\": null}]}\n{\"text\":\"ab\"}\n";
  for (char choice = 0; choice < 12; ++choice)
    write_file(folder / str("lines-", static_cast<int>(choice)), choice + lines);
  write_file(folder / "text", std::string(1, '\6') + "one ab two ab");
  const std::string member("\x1F\x8B\x08\0\0\0\0\0\0\x03\x4B\x4C\x4A\xE6\x02\0\x4E\x81\x88\x47\x04\0\0\0", 24);
  write_file(folder / "members", std::string(1, '\1') + member + member);
}

int run(const fs::path& folder) {
  write_corpora(folder / "corpus");
  write_configs(folder / "config");
  write_options(folder / "options");
  const fs::path checkpoint_folder = write_checkpoints(scratch_folder());
  std::string text = read_file(checkpoint_folder / kManifestName);
  write_file(folder / "manifest/sealed", "!" + text);
  write_file(folder / "manifest/body", text.substr(0, text.find(",\n \"sha256\": \"", text.find("\"tensors\""))));
  write_file(folder / "checkpoint/zeros", std::string(200, '\0'));
  std::string counting(400, '\0');
  std::iota(counting.begin(), counting.end(), '\0');
  write_file(folder / "checkpoint/counting", counting);
  const CheckpointReader reader(checkpoint_folder);
  const TensorSource source = source_of(reader);
  fs::create_directories(folder / "safetensors");
  fs::create_directories(folder / "hdf5_export");
  export_tensors(source, folder / "safetensors/export.safetensors");
  export_tensors(source, folder / "hdf5_export/export.h5");
  write_token_files(folder / "token_file");
  write_tokenizers(folder / "tokenizer");
  return 0;
}

}  // namespace
}  // namespace tmamba::fuzz

int main(int count, char** words) {
  if (count == 2) return tmamba::fuzz::run(words[1]);
  std::fprintf(stderr, "usage: %s FOLDER\n", words[0]);
  return 2;
}
