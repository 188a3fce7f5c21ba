// class RunProgress: what a run remembers between attempts beside its checkpoints, in progress.json of the run
// directory. It detects crash loops: attempts that fail again and again before they make a newer checkpoint.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace tmamba {

class RunProgress {
 public:
  static constexpr int kAttempts = 3;  // attempts in a row without a newer checkpoint, then no more

  // Reads the file of earlier attempts. Only the one rank with `write` reads and writes; on others all calls do
  // nothing.
  RunProgress(const std::filesystem::path& run, bool write);

  // Called before training begins from `step` (-1: from no checkpoint). Returns true if kAttempts attempts in a row,
  // with the same configuration, began from this step; else counts this one. Throws Error if it cannot write.
  bool stuck(int64_t step, const std::string& config);
  // Called when the run has finished or has a newer checkpoint: resets the count.
  void moved_on();

  // Writes the file again, in case it was removed with the run directory.
  void write_again() const;

  // Called when the run has rolled back to the checkpoint of `step`; it leaves out `skipped_sequences` sequences in
  // all.
  void rolled_back(int64_t step, int64_t skipped_sequences);
  bool rolled_back_to(int64_t step) const { return rollback_step_ == step; }
  int64_t skipped_sequences() const { return skipped_sequences_; }

  const std::filesystem::path& file() const { return file_; }

 private:
  void write() const;

  std::filesystem::path file_;
  bool write_;
  std::string nonce_;   // of temporary files
  std::string config_;  // hash of the configuration
  int64_t step_ = -1;
  int attempts_ = 0;
  int64_t rollback_step_ = -1, skipped_sequences_ = 0;
};

}  // namespace tmamba
