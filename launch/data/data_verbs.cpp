#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/tokens/prepare.h"
#include "data/tokens/tokenizer.h"
#include "kernels/base/check.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/verbs.h"

namespace tmamba {

namespace po = boost::program_options;

namespace {

using nlohmann::json;

std::vector<std::filesystem::path> paths(const std::vector<std::string>& names) { return {names.begin(), names.end()}; }

// The file's bytes, or those of standard input for "-".
std::string read_text(const std::string& path) {
  std::ostringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
  } else {
    std::ifstream in(path, std::ios::binary);
    if (!in) throw UserError(str(path, ": cannot open this file for reading"));
    text << in.rdbuf();
  }
  return text.str();
}

int train_tokenizer(const Command& command) {
  SentencePieceOptions options{.vocab_size = command.get<int64_t>("vocab"),
                               .model_type = command.get<std::string>("type"),
                               .max_training_bytes = command.get<int64_t>("max-bytes"),
                               .seed = command.get<uint64_t>("seed"),
                               .verbose = command.has("verbose")};
  if (!command.has("output")) throw UserError("--output is missing: the tokenizer file to write");
  const std::string output = command.get<std::string>("output");
  train_sentencepiece(paths(command.list("inputs")), output, options);
  const auto tokenizer = load_tokenizer(output);
  if (command.json()) {
    std::printf(
        "%s\n",
        json({{"path", output}, {"vocab", tokenizer->vocab_size()}, {"hash", tokenizer->hash()}}).dump(2).c_str());
  } else {
    std::printf("%s: %lld tokens\n", output.c_str(), static_cast<long long>(tokenizer->vocab_size()));
  }
  return kDone;
}

int encode(const Command& command, const Tokenizer& tokenizer) {
  for (const std::string& input : command.list("inputs")) {
    const std::vector<int32_t> tokens = tokenizer.encode(read_text(input));
    if (command.json()) {
      std::printf("%s\n", json(tokens).dump().c_str());
      continue;
    }
    for (size_t i = 0; i < tokens.size(); ++i) std::printf("%s%d", i ? " " : "", tokens[i]);
    std::printf("\n");
  }
  return kDone;
}

int decode(const Command& command, const Tokenizer& tokenizer) {
  for (const std::string& input : command.list("inputs")) {
    std::istringstream numbers(read_text(input));
    std::vector<int32_t> tokens;
    for (int32_t token; numbers >> token;) tokens.push_back(token);
    if (!numbers.eof()) throw UserError(str(input, ": expected token ids separated by white space"));
    const std::string text = tokenizer.decode(tokens);
    std::fwrite(text.data(), 1, text.size(), stdout);
  }
  return kDone;
}

PrepareOptions prepare_options(const Command& command) {
  if (command.list("inputs").empty()) throw UserError("no input file was given: prepare FILE...");
  if (!command.has("output")) throw UserError("--output is missing: the folder to write");
  std::string separator = command.get<std::string>("separator");
  for (size_t at = 0; (at = separator.find("\\n", at)) != std::string::npos; ++at) separator.replace(at, 2, "\n");
  PrepareOptions options{.inputs = paths(command.list("inputs")),
                         .output = command.get<std::string>("output"),
                         .tokenizer = command.get<std::string>("tokenizer"),
                         .held_out = command.get<double>("held-out"),
                         .separator = separator,
                         .json_field = command.get<std::string>("field"),
                         .seed = command.get<uint64_t>("seed"),
                         .overwrite = command.has("overwrite")};
  if (command.json()) return options;
  options.progress = [shown = -0.1](const PrepareProgress& p) mutable {
    const double done = p.bytes_total > 0 ? static_cast<double>(p.bytes_done) / static_cast<double>(p.bytes_total) : 1;
    if (done < shown + 0.1) return;  // a line per tenth
    shown = done;
    message_line(str("prepare ", fixed(100 * done, 0), " %  ", bytes_text(p.bytes_done), " of ",
                     bytes_text(p.bytes_total), "  ", count_text(static_cast<double>(p.tokens)), " tokens"));
  };
  return options;
}

json json_of(const PrepareReport& report) {
  json files = json::array();
  for (const PreparedFile& f : report.files) {
    files.push_back({{"path", f.path.string()},
                     {"split", f.split},
                     {"tokens", f.tokens},
                     {"documents", f.documents},
                     {"source_bytes", f.source_bytes},
                     {"source_sha256", f.source_hash},
                     {"file_bytes", f.file_bytes}});
  }
  return {{"already_done", report.already_done},       {"files", files},
          {"held_out_by", report.held_out_by},         {"vocab", report.vocab_size},
          {"tokens_per_byte", report.tokens_per_byte}, {"seconds", report.seconds}};
}

}  // namespace

int tokenizer_verb(const Arguments& arguments) {
  Command command("tokenizer train|encode|decode FILE... [options]",
                  "train   trains a lossless SentencePiece tokenizer on text files: --vocab N --output FILE\n"
                  "encode  text files (- is standard input) to token ids: --tokenizer FILE\n"
                  "decode  token ids to text: --tokenizer FILE");
  command.options()("output,o", po::value<std::string>(), "file to write")(
      "vocab", po::value<int64_t>()->default_value(4096), "number of tokens")(
      "type", po::value<std::string>()->default_value("bpe"), "bpe or unigram")(
      "max-bytes", po::value<int64_t>()->default_value(int64_t{64} << 20),
      "train on at most this many bytes of text, sampled from all files")(
      "seed", po::value<uint64_t>()->default_value(0), "seed of that sample")(
      "verbose", "show SentencePiece's own log")("tokenizer", po::value<std::string>()->default_value("bytes"),
                                                 "\"bytes\" or a tokenizer file");
  command.positional("action");
  command.positional("inputs", -1);
  if (!command.parse(arguments)) return kDone;
  const std::string action = command.required("action");
  if (command.list("inputs").empty()) throw UserError(str("no input file was given: tokenizer ", action, " FILE..."));
  if (action == "train") return train_tokenizer(command);
  const auto tokenizer = load_tokenizer(command.get<std::string>("tokenizer"));
  if (action == "encode") return encode(command, *tokenizer);
  if (action == "decode") return decode(command, *tokenizer);
  throw UserError(str("tokenizer ", action, ": unknown action; valid: train, encode, decode"));
}

int prepare_verb(const Arguments& arguments) {
  Command command(
      "prepare FILE... --output FOLDER [options]",
      "Tokenizes text files, JSONL files (*.jsonl) and gzip files of either (*.gz) into the HDF5 token files\n"
      "train.h5 and valid.h5, with the tokenizer beside them. Inputs are streamed. A data set that was\n"
      "already prepared from the same inputs and options is left unchanged.");
  command.options()("output,o", po::value<std::string>(), "folder to write")(
      "tokenizer", po::value<std::string>()->default_value("bytes"), "\"bytes\" or a tokenizer file")(
      "held-out", po::value<double>()->default_value(0.01, "0.01"), "fraction of the text for validation")(
      "separator", po::value<std::string>()->default_value(""),
      "split plain text into documents at this text (\\n is a newline); default: one document per file")(
      "field", po::value<std::string>()->default_value("text"), "JSONL field that holds the text")(
      "seed", po::value<uint64_t>()->default_value(0), "seed of the choice of validation text")(
      "overwrite", "replace another data set in the folder");
  command.positional("inputs", -1);
  if (!command.parse(arguments)) return kDone;
  const PrepareReport report = prepare(prepare_options(command));
  if (command.json()) {
    std::printf("%s\n", json_of(report).dump(2).c_str());
    return kDone;
  }
  for (const PreparedFile& f : report.files) {
    message_line(str(f.path.string(), ": ", count_text(static_cast<double>(f.tokens)), " tokens, ", f.documents,
                     " documents, ", bytes_text(f.source_bytes), " of text",
                     report.already_done ? " (already prepared)" : ""));
  }
  return kDone;
}

}  // namespace tmamba
