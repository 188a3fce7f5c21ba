// class RunProgress: what a run must remember between starts that no checkpoint can tell: progress.json of its folder.
// A start that ends before it has made a newer checkpoint, and ever again, is a crash loop that costs a cluster days;
// a start that goes on while another has taken its place would write over the other's checkpoints.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace tmamba {

class RunProgress {
 public:
  static constexpr int kStarts = 3;  // without a newer checkpoint; then no more

  // Reads what earlier starts left; only the one rank with `write` does anything.
  RunProgress(const std::filesystem::path& run, bool write);

  // Training is about to begin from `step` (-1: from no checkpoint). Returns whether kStarts starts in a row, with the
  // same configuration, have come from this step already; else counts this one. Throws Error where it cannot write.
  bool stuck(int64_t step, const std::string& config);
  // The run has ended well, or has a newer checkpoint: starts count from none.
  void moved_on();

  // The same once more: the file may have gone with its folder.
  void write_again() const;

  // The run went back to the checkpoint of `step`, leaving out `passed_over` sequences in all.
  void went_back(int64_t step, int64_t passed_over);
  // Whether it did, and what it leaves out.
  bool has_gone_back_to(int64_t step) const { return back_step_ == step; }
  int64_t passed_over() const { return passed_over_; }

  // Throws Error where another start has taken over the run folder.
  void require_ours() const;
  // What that error says; empty where there is none.
  std::string taken_over() const;

  const std::filesystem::path& file() const { return file_; }

 private:
  void write() const;

  std::filesystem::path file_;
  bool write_;
  std::string nonce_;   // of this start
  std::string config_;  // hash of the configuration
  int64_t step_ = -1;
  int starts_ = 0;
  int64_t back_step_ = -1, passed_over_ = 0;
};

}  // namespace tmamba
