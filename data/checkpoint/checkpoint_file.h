// Writes one rank's file of a checkpoint.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"
#include "data/checkpoint/manifest.h"

namespace tmamba {

struct RankFile {
  ManifestFile file;
  std::vector<StoredSlice> slices;  // in the order of the TensorSlices; the caller sets `file`
};

// "rank-00003.h5".
std::string rank_file_name(int rank);

// Throws Error naming the tensor unless the slice can be stored: valid name and sizes, host memory, contiguous rows.
void check_slice(const TensorSlice& slice);

// Offset and shape of a slice; its dataset and position are not set yet.
StoredSlice describe(const TensorSlice& slice);

// Writes the slices to a new HDF5 file; durable on return. A slice that is its complete tensor becomes the dataset
// /NAME, any other one /NAME/OFFSET with the attributes `offset` and `tensor_shape`. bfloat16 is stored as uint16 with
// the attribute dtype = "bfloat16". Throws Error soon after another thread sets `cancelled`.
// A slice with null data belongs to another rank: `pull` fills a buffer with its next bytes. Slices are pulled one at a
// time.
using PullBytes = std::function<void(size_t slice, char* out, size_t bytes)>;
RankFile write_rank_file(const std::filesystem::path& path, std::span<const TensorSlice> slices,
                         const std::atomic<bool>& cancelled, const PullBytes& pull = {});

// Creates the file and allocates `bytes` bytes for it, so that a full disk fails here with the system's message and not
// inside HDF5. HDF5 truncates the file when it creates it again.
void try_space(const std::filesystem::path& path, int64_t bytes);

}  // namespace tmamba
