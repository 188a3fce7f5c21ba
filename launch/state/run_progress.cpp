#include "launch/state/run_progress.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "data/io/fs.h"
#include "data/io/sha256.h"

namespace tmamba {

namespace {

constexpr int64_t kMaxBytes = 1 << 16;

nlohmann::json read_json(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file)) return nlohmann::json::object();
  const nlohmann::json value = nlohmann::json::parse(read_text(file, kMaxBytes), nullptr, false);
  if (!value.is_object()) throw UserError(str(file.string(), ": damaged; delete it and restart the run"));
  return value;
}

}  // namespace

RunProgress::RunProgress(const std::filesystem::path& run, bool write)
    : file_(run / "progress.json"), write_(write), nonce_(random_nonce()) {
  if (!write_) return;
  try {
    const nlohmann::json value = read_json(file_);
    config_ = value.value("config", "");
    step_ = value.value("step", int64_t{-1});
    attempts_ = value.value("starts", 0);
    rollback_step_ = value.value("went_back_to", int64_t{-1});
    skipped_sequences_ = value.value("passed_over", int64_t{0});
  } catch (const nlohmann::json::exception&) {
    throw UserError(str(file_.string(), ": damaged; delete it and restart the run"));
  }
}

bool RunProgress::stuck(int64_t step, const std::string& config) {
  if (!write_) return false;
  const std::string hash = sha256_hex(config);
  if (step != step_ || hash != config_) attempts_ = 0;
  if (attempts_ >= kAttempts) return true;
  step_ = step;
  config_ = hash;
  ++attempts_;
  write();
  return false;
}

void RunProgress::moved_on() {
  if (!write_ || attempts_ == 0) return;
  attempts_ = 0;
  write_again();
}

void RunProgress::write_again() const {
  if (!write_) return;
  try {
    write();
  } catch (const FileError& error) {  // the next attempt finds the newer checkpoint anyway
    std::fprintf(stderr, "%s\n", error.what());
  }
}

void RunProgress::rolled_back(int64_t step, int64_t skipped_sequences) {
  rollback_step_ = step;
  skipped_sequences_ = skipped_sequences;
  if (write_) write();
}

void RunProgress::write() const {
  const nlohmann::json value = {{"config", config_},
                                {"step", step_},
                                {"starts", attempts_},
                                {"went_back_to", rollback_step_},
                                {"passed_over", skipped_sequences_}};
  replace_text_durably(file_, value.dump(2) + "\n", nonce_);
}

}  // namespace tmamba
