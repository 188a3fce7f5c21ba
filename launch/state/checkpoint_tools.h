// What `transmamba checkpoint` does beside looking: comparing, thinning out, and other forms of a checkpoint.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"

namespace tmamba {

// All return the exit code, print to standard output, and throw UserError for mistakes.

// Where two checkpoints differ: step, state, tensors and their bits. 0: nowhere; 1 otherwise.
int checkpoint_diff(const std::filesystem::path& a, const std::filesystem::path& b, bool as_json);
// Removes the checkpoints of a run folder that the retention does not keep; with `only_show` says which. The newest
// that it keeps are read and verified; damaged ones among them do not count, are named and stay. 1: none is whole.
int checkpoint_prune(const std::filesystem::path& run, const SaveOptions& keep, bool only_show, bool as_json);
// The same checkpoint in `writers` files, in another folder of checkpoints.
int checkpoint_reshard(const std::filesystem::path& from, const std::filesystem::path& to, int64_t writers,
                       bool as_json);
// One .h5 or .safetensors file, with config.json beside it; `weights_only` leaves the optimizer's state out. Neither is
// written over; a config.json that says the same may be there.
int checkpoint_export(const std::filesystem::path& from, const std::filesystem::path& file, bool weights_only,
                      bool as_json);
// A checkpoint of such a file, in a folder of checkpoints. Throws DamagedCheckpoint where it does not have the
// checksums in it; one without is taken as it is, with a line on standard error.
int checkpoint_import(const std::filesystem::path& file, const std::filesystem::path& to, bool as_json);

// The folder of checkpoints of a run, or the path itself where it is one. Throws UserError where there is no folder.
std::filesystem::path checkpoints_folder(const std::filesystem::path& run);

}  // namespace tmamba
