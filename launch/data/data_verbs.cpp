#include <algorithm>
#include <cstdio>
#include <filesystem>
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
#include "launch/cli/signals.h"
#include "launch/verbs.h"

namespace tmamba {

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

uint64_t seed_of(const Command& command) { return static_cast<uint64_t>(command.get<int64_t>("seed")); }

CorpusOptions corpus_options(const Command& command) {
  CorpusOptions corpus;
  const auto format = command.get<std::string>("format");
  corpus.format = format == "text"    ? CorpusFormat::text
                  : format == "jsonl" ? CorpusFormat::json_lines
                                      : CorpusFormat::automatic;
  corpus.json_field = command.get<std::string>("field");
  corpus.skip_errors = command.get<std::string>("on-error") == "skip";
  corpus.max_errors = command.get<int64_t>("max-errors");
  return corpus;
}

void print_skipped(const SkippedRecords& skipped) {
  if (skipped.count == 0) return;
  message_line(str("skipped records that cannot be read: ", skipped.count, "; the first:"));
  for (const std::string& one : skipped.first) message_line("  " + one);
}

json json_of(const SkippedRecords& skipped) { return {{"records", skipped.count}, {"first", skipped.first}}; }

// A file is written only at the end, so its folder is checked before the work.
std::string output_file(const Command& command) {
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
                                     .seed = seed_of(command),
                                     .verbose = command.has("verbose"),
                                     .corpus = corpus_options(command)};
  const std::string output = output_file(command);
  const SkippedRecords skipped = train_sentencepiece(paths(command.list("file")), output, options);
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
  for (const std::string& input : command.list("file")) {
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
  for (const std::string& input : command.list("file")) {
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
  PrepareOptions options{.inputs = paths(command.list("file")),
                         .output = command.get<std::string>("output"),
                         .tokenizer = command.get<std::string>("tokenizer"),
                         .held_out = command.get<double>("held-out"),
                         .corpus = corpus_options(command),
                         .seed = seed_of(command),
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
  Command command("tokenizer");
  if (!command.parse(arguments)) return kDone;
  const std::string action = command.get<std::string>("action");
  exit_on_signals();
  if (action == "train") return train_tokenizer(command);
  const auto tokenizer = load_tokenizer(command.get<std::string>("tokenizer"));
  return action == "encode" ? encode(command, *tokenizer) : decode(command, *tokenizer);
}

int prepare_verb(const Arguments& arguments) {
  Command command("prepare");
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
