#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/tokens/prepare.h"
#include "data/tokens/tokenizer.h"
#include "kernels/base/check.h"
#include "launch/cli/command.h"
#include "launch/cli/exit_code.h"
#include "launch/cli/format.h"
#include "launch/cli/signals.h"
#include "launch/verbs.h"

namespace tmamba {

namespace po = boost::program_options;

namespace {

using nlohmann::json;

std::vector<std::filesystem::path> paths(const std::vector<std::string>& names) { return {names.begin(), names.end()}; }

// Bytes of names or text that are not UTF-8 become U+FFFD.
void print_json(const json& value) {
  std::printf("%s\n", value.dump(2, ' ', false, json::error_handler_t::replace).c_str());
}

// The file's bytes, or those of standard input for "-".
std::string read_text(const std::string& path) {
  std::ostringstream text;
  if (path == "-") {
    text << std::cin.rdbuf();
  } else {
    if (std::filesystem::is_directory(path)) throw UserError(path + ": is a directory; give the files in it");
    std::ifstream in(path, std::ios::binary);
    if (!in) throw UserError(str(path, ": cannot open this file for reading"));
    text << in.rdbuf();
  }
  return text.str();
}

int64_t in_range(const Command& command, const std::string& name, int64_t least, int64_t most) {
  const auto value = command.get<int64_t>(name);
  if (value < least || value > most) {
    throw UserError(str("--", name, " is ", value, "; it must be between ", least, " and ", most));
  }
  return value;
}

// The index in `valid` of the option's value.
size_t one_of(const Command& command, const std::string& name, const std::vector<std::string>& valid) {
  const auto value = command.get<std::string>(name);
  const auto found = std::find(valid.begin(), valid.end(), value);
  if (found != valid.end()) return static_cast<size_t>(found - valid.begin());
  std::string list;
  for (const std::string& one : valid) list += (list.empty() ? "" : ", ") + one;
  throw UserError(str("--", name, " is \"", value, "\"; valid: ", list));
}

// Replaces the escape sequences that a shell passes on: \n, \r, \t, \\ and \xHH.
std::string unescape(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] != '\\') {
      out += text[at];
      continue;
    }
    const char c = ++at < text.size() ? text[at] : '\0';
    const size_t known = std::string_view("nrt\\").find(c);
    unsigned byte = 0;
    if (known != std::string_view::npos) {
      out += "\n\r\t\\"[known];
    } else if (c == 'x' && std::sscanf(text.substr(at + 1, 2).c_str(), "%2x", &byte) == 1 && at + 2 < text.size()) {
      out += static_cast<char>(byte);
      at += 2;
    } else {
      throw UserError("--separator has an unknown escape sequence; valid: \\n, \\r, \\t, \\\\ and \\xHH");
    }
  }
  return out;
}

constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();

void add_corpus_options(Command& command) {
  command.options()(
      "format", po::value<std::string>()->default_value("auto"),
      "auto: JSON lines if the text begins as a JSON object or the file is named .jsonl, .ndjson or .json; "
      "text: any bytes; jsonl")("field", po::value<std::string>()->default_value("text"),
                                "JSON lines: the field that holds the text")(
      "on-error", po::value<std::string>()->default_value("stop"),
      "JSON lines that cannot be read: stop, or skip them and report their number and the first ten")(
      "max-errors", po::value<int64_t>()->default_value(1000), "stop after skipping this many");
}

CorpusOptions corpus_options(const Command& command) {
  CorpusOptions corpus;
  corpus.format = static_cast<CorpusFormat>(one_of(command, "format", {"auto", "text", "jsonl"}));
  corpus.json_field = command.get<std::string>("field");
  corpus.skip_errors = one_of(command, "on-error", {"stop", "skip"}) == 1;
  corpus.max_errors = in_range(command, "max-errors", 0, kLargest);
  return corpus;
}

void print_skipped(const SkippedRecords& skipped) {
  if (skipped.count == 0) return;
  message_line(str("skipped records that cannot be read: ", skipped.count, "; the first:"));
  for (const std::string& one : skipped.first) message_line("  " + one);
}

json json_of(const SkippedRecords& skipped) { return {{"records", skipped.count}, {"first", skipped.first}}; }

// A file is written only at the end, so its folder is checked before the work.
std::string output_file(const Command& command, const std::string& what) {
  if (!command.has("output")) throw UserError("--output is missing: " + what);
  const std::filesystem::path output = command.get<std::string>("output");
  if (std::filesystem::is_directory(output)) throw UserError(str("--output ", output.string(), ": is a directory"));
  if (!std::filesystem::is_directory(std::filesystem::absolute(output).parent_path())) {
    throw UserError(str("--output ", output.string(), ": its directory does not exist"));
  }
  return output;
}

int train_tokenizer(const Command& command) {
  const SentencePieceOptions options{.vocab_size = command.get<int64_t>("vocab"),
                                     .model_type = command.get<std::string>("type"),
                                     .max_training_bytes = command.get<int64_t>("max-bytes"),
                                     .seed = static_cast<uint64_t>(in_range(command, "seed", 0, kLargest)),
                                     .verbose = command.has("verbose"),
                                     .corpus = corpus_options(command)};
  const std::string output = output_file(command, "the tokenizer file to write");
  const SkippedRecords skipped = train_sentencepiece(paths(command.list("inputs")), output, options);
  const auto tokenizer = load_tokenizer(output);
  if (command.json()) {
    print_json({{"path", output},
                {"vocab", tokenizer->vocab_size()},
                {"hash", tokenizer->hash()},
                {"skipped", json_of(skipped)}});
    return kDone;
  }
  print_skipped(skipped);
  std::printf("%s: %lld tokens\n", output.c_str(), static_cast<long long>(tokenizer->vocab_size()));
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
    if (command.json()) {
      print_json(text);
    } else {
      std::fwrite(text.data(), 1, text.size(), stdout);
    }
  }
  return kDone;
}

PrepareOptions prepare_options(const Command& command) {
  if (command.list("inputs").empty()) throw UserError("no input file was given: prepare FILE...");
  if (!command.has("output")) throw UserError("--output is missing: the directory to write");
  PrepareOptions options{.inputs = paths(command.list("inputs")),
                         .output = command.get<std::string>("output"),
                         .tokenizer = command.get<std::string>("tokenizer"),
                         .held_out = command.get<double>("held-out"),
                         .corpus = corpus_options(command),
                         .seed = static_cast<uint64_t>(in_range(command, "seed", 0, kLargest)),
                         .overwrite = command.has("overwrite")};
  options.corpus.separator = unescape(command.get<std::string>("separator"));
  install_signal_handlers();
  options.corpus.interrupt = [output = options.output.string()] {
    if (const int signal = pending_signal(); signal != 0) {
      throw Error(str("stopped by ", signal_name(signal), "; ", output, " is as it was before"));
    }
  };
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
          {"tokens_per_byte", report.tokens_per_byte}, {"seconds", report.seconds},
          {"skipped", json_of(report.skipped)},        {"notes", report.notes}};
}

}  // namespace

int tokenizer_verb(const Arguments& arguments) {
  Command command("tokenizer train|encode|decode FILE... [options]",
                  "train   trains a lossless SentencePiece tokenizer on text files: --vocab N --output FILE\n"
                  "encode  text files to token ids: --tokenizer FILE\n"
                  "decode  token ids to text: --tokenizer FILE\n"
                  "A FILE - is standard input.");
  command.options()("output,o", po::value<std::string>(), "file to write")(
      "vocab", po::value<int64_t>()->default_value(4096), "number of tokens, at least 261")(
      "type", po::value<std::string>()->default_value("bpe"), "bpe or unigram")(
      "max-bytes", po::value<int64_t>()->default_value(int64_t{64} << 20),
      "train on at most this many bytes of text, sampled from all files")(
      "seed", po::value<int64_t>()->default_value(0), "seed of that sample")("verbose", "show SentencePiece's own log")(
      "tokenizer", po::value<std::string>()->default_value("bytes"), "\"bytes\" or a tokenizer file");
  add_corpus_options(command);
  command.positional("action");
  command.positional("inputs", -1);
  if (!command.parse(arguments)) return kDone;
  const std::string action = command.required("action");
  if (command.list("inputs").empty()) throw UserError(str("no input file was given: tokenizer ", action, " FILE..."));
  exit_on_signals();
  if (action == "train") return train_tokenizer(command);
  if (action != "encode" && action != "decode") {
    throw UserError(str("tokenizer ", action, ": unknown action; valid: train, encode, decode"));
  }
  const auto tokenizer = load_tokenizer(command.get<std::string>("tokenizer"));
  return action == "encode" ? encode(command, *tokenizer) : decode(command, *tokenizer);
}

int prepare_verb(const Arguments& arguments) {
  Command command(
      "prepare FILE... --output FOLDER [options]",
      "Tokenizes text files, JSON lines and gzip files of either, recognised by their content, into the HDF5\n"
      "token files train.h5 and valid.h5, with the tokenizer beside them. Inputs are streamed. A data set that\n"
      "was already prepared from the same inputs and options is left unchanged.");
  command.options()("output,o", po::value<std::string>(), "directory to write")(
      "tokenizer", po::value<std::string>()->default_value("bytes"), "\"bytes\" or a tokenizer file")(
      "held-out", po::value<double>()->default_value(0.01, "0.01"), "fraction of the text for validation, 0 to 0.5")(
      "separator", po::value<std::string>()->default_value(""),
      "split plain text into documents at this text (\\n, \\r, \\t, \\\\ and \\xHH are escape sequences); default: one "
      "document per file")("seed", po::value<int64_t>()->default_value(0), "seed of the choice of validation text")(
      "overwrite", "replace another data set in the directory");
  add_corpus_options(command);
  command.positional("inputs", -1);
  if (!command.parse(arguments)) return kDone;
  const PrepareReport report = prepare(prepare_options(command));
  if (command.json()) {
    print_json(json_of(report));
    return kDone;
  }
  print_skipped(report.skipped);
  constexpr size_t kNotes = 10;
  for (size_t i = 0; i < std::min(kNotes, report.notes.size()); ++i) message_line("note: " + report.notes[i]);
  if (report.notes.size() > kNotes)
    message_line(str("and ", report.notes.size() - kNotes, " more notes: see dataset.json"));
  for (const PreparedFile& f : report.files) {
    message_line(str(f.path.string(), ": ", count_text(static_cast<double>(f.tokens)), " tokens, ", f.documents,
                     " documents, ", bytes_text(f.source_bytes), " of text",
                     report.already_done ? " (already prepared)" : ""));
  }
  return kDone;
}

}  // namespace tmamba
