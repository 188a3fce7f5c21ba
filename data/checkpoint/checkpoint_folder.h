// The folder of checkpoints: names, retention, left-overs. Everything here is called on one rank.
//   step-00001000                a checkpoint, whole where it holds a manifest
//   step-00001000.tmp-NONCE      being written, or being removed; of no worth to anyone else
//   step-00001000.old-NONCE      set aside while another of the same step takes its place (only where the file system
//                                cannot swap two names)
//   step-00001000.damaged[-N]    found damaged when it was to be loaded
//   latest                       text: the name of the newest
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"

namespace tmamba {

// "step-00001000".
std::string checkpoint_name(int64_t step);
// The step of such a name; nothing for any other name.
std::optional<int64_t> step_of_name(const std::string& name);
// "step-00001000.tmp-NONCE".
std::string temporary_name(int64_t step, const std::string& nonce);

// The checkpoint that a person means: a checkpoint itself, the newest one of a run folder or of a folder of
// checkpoints, or the one that a file `latest` names. Throws UserError where there is none. Looks at names alone.
std::filesystem::path checkpoint_at(const std::filesystem::path& path);

// What is wrong where a folder named for one step holds the checkpoint of another; empty: nothing, or another name.
std::string misplaced(const CheckpointReader& reader);

// Gives the finished folder `temporary` its name and makes that durable. A folder that is there under this name is
// replaced, in one step where the file system can; it ends up under a temporary name.
void publish_checkpoint(const std::filesystem::path& temporary, const std::filesystem::path& final_path,
                        const std::string& nonce);

// Puts back a checkpoint that a crash in publish_checkpoint left set aside. Nothing to do where the folder is missing.
void recover_set_aside(const std::filesystem::path& checkpoints);

// Removes a checkpoint: first it loses its name, then its manifest, then its files.
void remove_checkpoint(const std::filesystem::path& path, const std::string& nonce);

// The checkpoints of a folder that the retention does not keep, oldest first, where `current` is kept as the newest.
std::vector<std::filesystem::path> beyond_retention(const std::filesystem::path& current, const SaveOptions& options);

// The same where nobody knows which checkpoints are whole: the newest ones to keep are those that verify. Damaged ones
// that are met on the way do not count and are neither kept nor to be removed; nothing is to be removed where none
// verifies.
struct VerifiedRetention {
  struct Damaged {
    std::filesystem::path path;
    std::string problem;
  };
  std::vector<std::filesystem::path> beyond;  // oldest first
  std::vector<Damaged> damaged;               // newest first
  int64_t kept = 0;
};
VerifiedRetention verified_retention(const std::filesystem::path& checkpoints, const SaveOptions& options);

// After `current` was published: replaces `latest`, removes checkpoints beyond the retention and left-overs of crashed
// runs. Returns what did not work, one line each; the checkpoint is whole all the same.
std::vector<std::string> tidy_checkpoints(const std::filesystem::path& current, const SaveOptions& options,
                                          const std::string& nonce);

}  // namespace tmamba
