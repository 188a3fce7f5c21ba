// Bad files that the test creates: those that need the HDF5 library, and damaged checkpoints.
#pragma once

#include <filesystem>

namespace tmamba::fuzz {

// Token files and exports of checkpoints, in FOLDER/token_file and FOLDER/hdf5_export; each file name says what is
// wrong.
void write_bad_hdf5(const std::filesystem::path& folder);
// Checkpoints, one directory each, in FOLDER/checkpoint.
void write_bad_checkpoints(const std::filesystem::path& folder);

}  // namespace tmamba::fuzz
