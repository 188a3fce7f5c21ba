// Named tensors with a step and a state, wherever they lie: a sharded checkpoint, one plain HDF5 file, one safetensors
// file. Each form can be written from any other, bit for bit, a block at a time.
//
//   HDF5         a dataset /NAME per tensor (bfloat16 as uint16 with the attribute dtype = "bfloat16"; `crc32c`, 8
//                digits, of its bytes), the attributes `step` and `sha256` of the file, and /state_json, the bytes of
//                the state
//   safetensors  "model/NAME" is stored as NAME, for programs that want a model's weights, any other name as it is;
//                metadata `transmamba.step`, `transmamba.state`, `transmamba.crc32c` (a JSON object, by stored name)
//                and `transmamba.sha256`
//
// The SHA-256 is that of step, state and of the tensors' names, types, sizes and CRC32Cs (tensor_export.cpp). Files
// without checksums, of earlier versions or other programs, are read too; then there is nothing to check against.
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
  // Fills host tensor `out`, of the tensor's type, with the rows of `name` from `row` on.
  std::function<void(const std::string& name, int64_t row, const Tensor& out)> read;
  // Of each tensor's bytes, as a file says that must still be held against them; empty: nothing is to be checked.
  std::map<std::string, uint32_t> crc = {};

  int64_t bytes() const;
};

// Calls f(row, block) for the tensor's rows in turn, in blocks of some 64 MiB.
void each_block(const TensorSource& source, const StoredTensor& tensor,
                const std::function<void(int64_t row, const Tensor& block)>& f);

// The reader must outlive the source.
TensorSource source_of(const CheckpointReader& reader);
// By the ending of the name, .h5 or .safetensors. Throws UserError where the file is not such an export, and
// DamagedCheckpoint where it says of itself that it is not the one that was written. `crc` is what it says of the
// tensors' bytes.
TensorSource open_export(const std::filesystem::path& file);

// Writes a new file; it is there whole or not at all. Throws UserError where the name has another ending or the file
// exists.
void export_tensors(const TensorSource& source, const std::filesystem::path& file);
// Writes a new checkpoint of about equal files into a folder of checkpoints, `writers` of them (0: as many as keep each
// under 1 GiB), holding one in memory at a time. Returns its path. Throws UserError where one of this step exists, and
// DamagedCheckpoint naming file and tensor where bytes that were read do not have the source's `crc`: nothing is left.
std::filesystem::path write_checkpoint(const TensorSource& source, const std::filesystem::path& checkpoints,
                                       int64_t writers);

}  // namespace tmamba
