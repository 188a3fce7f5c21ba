// One rank's file of a checkpoint.
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
  std::vector<StoredSlice> slices;  // in the order given; `file` is left 0
};

// "rank-00003.h5".
std::string rank_file_name(int rank);

// Throws Error naming the tensor unless the slice can be stored: name, sizes, inside its tensor, in host memory with
// contiguous rows.
void check_slice(const TensorSlice& slice);

// A slice's rectangle, with no place yet.
StoredSlice describe(const TensorSlice& slice);

// Writes the slices to a new HDF5 file and returns when it is on the disk. A slice that is the whole of its tensor
// becomes the dataset /NAME, another one /NAME/OFFSET with attributes `offset` and `tensor_shape`; bfloat16 is stored
// as uint16 with the attribute dtype = "bfloat16". Throws soon after another thread has set `cancelled`.
// Slices whose data is null are another rank's: `pull` fills a buffer with the next bytes of one; each is asked for
// whole before the next.
using PullBytes = std::function<void(size_t slice, char* out, size_t bytes)>;
RankFile write_rank_file(const std::filesystem::path& path, std::span<const TensorSlice> slices,
                         const std::atomic<bool>& cancelled, const PullBytes& pull = {});

// Makes the file and takes and gives back the space for `bytes` bytes: a full disk is found here, with the system's own
// message, and not somewhere inside HDF5.
void try_space(const std::filesystem::path& path, int64_t bytes);

}  // namespace tmamba
