// The actions of `transmamba checkpoint` that compare, prune and convert checkpoints.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"

namespace tmamba {

// All return the exit code, print to standard output, and throw UserError for invalid arguments.

// Prints where two checkpoints differ: step, state, tensors and their bits. Returns 0 if nowhere, 1 otherwise.
int checkpoint_diff(const std::filesystem::path& a, const std::filesystem::path& b, bool as_json);
// Removes the checkpoints of a run directory that the retention does not keep; with `only_show` prints them only. The
// latest ones, which it keeps, are read and verified; damaged ones are printed, not counted and not removed. Returns 1
// if none is complete.
int checkpoint_prune(const std::filesystem::path& run, const SaveOptions& keep, bool only_show, bool as_json);
// Writes the same checkpoint in `writers` files into another folder of checkpoints.
int checkpoint_reshard(const std::filesystem::path& from, const std::filesystem::path& to, int64_t writers,
                       bool as_json);
// Writes one .h5 or .safetensors file, and config.json beside it; `weights_only` omits the optimizer state. Existing
// files are not overwritten, except that an identical config.json may exist.
int checkpoint_export(const std::filesystem::path& from, const std::filesystem::path& file, bool weights_only,
                      bool as_json);
// Writes a checkpoint of such a file into a folder of checkpoints. Throws DamagedCheckpoint if its tensors do not match
// the checksums in it; a file without checksums is imported unverified, with a line on standard error.
int checkpoint_import(const std::filesystem::path& file, const std::filesystem::path& to, bool as_json);

// The folder of checkpoints of a run directory, or the path itself if it is one. Throws UserError if there is none.
std::filesystem::path checkpoints_folder(const std::filesystem::path& run);

}  // namespace tmamba
