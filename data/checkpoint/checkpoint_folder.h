// The folder of checkpoints: names, retention, left-overs. Everything here is called on one rank.
//   step-00001000                a checkpoint; complete if it has a manifest
//   step-00001000.tmp-NONCE      being written or removed
//   step-00001000.old-NONCE      set aside while another one of the same step replaces it (only on file systems that
//                                cannot swap two names)
//   step-00001000.damaged[-N]    failed verification when it was to be loaded
//   latest                       text file: the name of the latest checkpoint
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"

namespace tmamba {

// "step-00001000".
std::string checkpoint_name(int64_t step);
// The step of such a name; nullopt for any other name.
std::optional<int64_t> step_of_name(const std::string& name);
// "step-00001000.tmp-NONCE".
std::string temporary_name(int64_t step, const std::string& nonce);

// Resolves a path from the command line: a checkpoint, a run directory or folder of checkpoints (its latest), or a file
// `latest` (the one it names). Throws UserError if there is none. Does not open the checkpoint.
std::filesystem::path checkpoint_at(const std::filesystem::path& path);

// The problem if the folder's name and the manifest have different steps; empty if not, or if the name has no step.
std::string misplaced(const CheckpointReader& reader);

// Renames the finished folder `temporary` to `final_path`; durable on return. An existing folder of this name is
// replaced, atomically if the file system supports it, and gets a temporary name.
void publish_checkpoint(const std::filesystem::path& temporary, const std::filesystem::path& final_path,
                        const std::string& nonce);

// Restores a checkpoint that a crash in publish_checkpoint left set aside. Does nothing if the folder is missing.
void recover_set_aside(const std::filesystem::path& checkpoints);

// Removes a checkpoint: renames it, then removes its manifest, then its files.
void remove_checkpoint(const std::filesystem::path& path, const std::string& nonce);

// The checkpoints that the retention does not keep, oldest first; `current` counts as the latest.
std::vector<std::filesystem::path> beyond_retention(const std::filesystem::path& current, const SaveOptions& options);

// The retention after verifying: only checkpoints that verify count towards options.keep. Damaged ones are reported and
// neither kept nor removed. If none verifies, none is beyond the retention.
struct VerifiedRetention {
  struct Damaged {
    std::filesystem::path path;
    std::string problem;
  };
  std::vector<std::filesystem::path> beyond;  // to be removed, oldest first
  std::vector<Damaged> damaged;               // newest first
  int64_t kept = 0;
};
VerifiedRetention verified_retention(const std::filesystem::path& checkpoints, const SaveOptions& options);

// Called after `current` was published: replaces `latest` and removes checkpoints beyond the retention and left-overs
// of crashed runs. Returns the errors, one line each; they do not affect `current`.
std::vector<std::string> tidy_checkpoints(const std::filesystem::path& current, const SaveOptions& options,
                                          const std::string& nonce);

}  // namespace tmamba
