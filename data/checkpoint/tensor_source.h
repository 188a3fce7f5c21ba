// Named tensors with a step and a state, stored as a sharded checkpoint, one HDF5 file or one safetensors file. Each
// form can be converted to any other, bit for bit, in blocks.
//
//   HDF5         a dataset /NAME per tensor (bfloat16 as uint16 with the attribute dtype = "bfloat16"; the attribute
//                `crc32c` of its bytes, 8 hexadecimal digits), the root attributes `step` and `sha256`, and the dataset
//                /state_json, the state as text
//   safetensors  "model/NAME" is stored as NAME, for programs that load a model's weights; other names are unchanged.
//                Metadata: `transmamba.step`, `transmamba.state`, `transmamba.crc32c` (a JSON object by stored name)
//                and `transmamba.sha256`
//
// The SHA-256, the seal, covers the step, the state and the tensors' names, types, sizes and CRC32Cs
// (tensor_export.cpp). Files without checksums, from earlier versions or other programs, are read without verification.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "data/checkpoint/checkpoint.h"

namespace tmamba {

struct TensorSource {
  std::filesystem::path path;
  int64_t step = 0;
  nlohmann::json state;
  std::vector<StoredTensor> tensors;  // sorted by name
  // Fills the host tensor `out`, of the stored type, with rows of `name` starting at `row`.
  std::function<void(const std::string& name, int64_t row, const Tensor& out)> read;
  // The expected CRC32C of each tensor's bytes, which `read` does not verify; empty: there is nothing to verify.
  std::map<std::string, uint32_t> crc = {};

  int64_t bytes() const;
};

// Calls f(row, block) for all rows of the tensor in order, in blocks of about 64 MiB.
void each_block(const TensorSource& source, const StoredTensor& tensor,
                const std::function<void(int64_t row, const Tensor& block)>& f);

// The reader must outlive the source.
TensorSource source_of(const CheckpointReader& reader);
// Opens an export; the extension selects the format (.h5, .hdf5 or .safetensors). Throws UserError if the file is not
// such an export and DamagedCheckpoint if its seal does not match. The source's `crc` is taken from the file.
TensorSource open_export(const std::filesystem::path& file);

// Writes a new file atomically. Throws UserError if the extension is unknown or the file exists.
void export_tensors(const TensorSource& source, const std::filesystem::path& file);
// Writes a new checkpoint of `writers` files of about equal size (0: as many as keep each under 1 GiB) to a folder of
// checkpoints, with one file in memory at a time. Returns its path. Throws UserError if a checkpoint of this step
// exists and DamagedCheckpoint naming file and tensor if the bytes do not match the source's `crc`; nothing remains
// then.
std::filesystem::path write_checkpoint(const TensorSource& source, const std::filesystem::path& checkpoints,
                                       int64_t writers);

}  // namespace tmamba
