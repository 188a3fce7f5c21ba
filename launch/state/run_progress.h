// class RunProgress: what a run remembers between attempts beside its checkpoints, in progress.json of the run
// directory. It detects crash loops (attempts that fail again and again before they make a newer checkpoint) and a
// second attempt that writes into the same run directory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace tmamba {

class RunProgress {
 public:
  static constexpr int kStarts = 3;  // attempts in a row without a newer checkpoint, then no more

  // Reads the file of earlier attempts. Only the one rank with `write` reads and writes; on others all calls do
  // nothing.
  RunProgress(const std::filesystem::path& run, bool write);

  // Called before training begins from `step` (-1: from no checkpoint). Returns true if kStarts attempts in a row, with
  // the same configuration, began from this step; else counts this one. Throws Error if it cannot write.
  bool stuck(int64_t step, const std::string& config);
  // Called when the run has finished or has a newer checkpoint: resets the count.
  void moved_on();

  // Writes the file again, in case it was removed with the run directory.
  void write_again() const;

  // Called when the run has rolled back to the checkpoint of `step`; it leaves out `passed_over` sequences in all.
  void went_back(int64_t step, int64_t passed_over);
  bool has_gone_back_to(int64_t step) const { return back_step_ == step; }
  int64_t passed_over() const { return passed_over_; }

  // Throws Error if another attempt has taken over the run directory.
  void require_ours() const;
  // The message of that error; empty if no attempt has.
  std::string taken_over() const;

  const std::filesystem::path& file() const { return file_; }

 private:
  void write() const;

  std::filesystem::path file_;
  bool write_;
  std::string nonce_;   // of this attempt
  std::string config_;  // hash of the configuration
  int64_t step_ = -1;
  int starts_ = 0;
  int64_t back_step_ = -1, passed_over_ = 0;
};

}  // namespace tmamba
