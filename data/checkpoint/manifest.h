// The manifest of a checkpoint: the location and checksum of every tensor slice, and the checksum of every file. It is
// written last, so a checkpoint that has one is complete. It is treated as untrusted input when it is read.
//
// The file is JSON. Its last member, the seal, is the SHA-256 of everything before it:
//   "format": "transmamba-checkpoint", "version": 1, "step": 1000,
//   "state": any JSON that the run needs to resume,
//   "files": [{"name": "rank-00000.h5", "bytes": 4096, "sha256": "64 hexadecimal digits"}, ...],
//   "tensors": [{"name": "model/norm.weight", "dtype": "float32", "shape": [64], "slices": [
//       {"file": 0, "dataset": "/model/norm.weight", "position": 2048, "offset": [0], "shape": [64],
//        "crc32c": "8 hexadecimal digits"}]}],
//   "sha256": of all bytes of this file before the comma that precedes this member
// `file` is an index of "files". `position` is the file offset of the slice's bytes, which are contiguous, row-major
// and little-endian.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"

namespace tmamba {

inline constexpr const char* kManifestName = "manifest.json";

// A slice of a tensor and the location of its bytes.
struct StoredSlice {
  size_t file = 0;       // index of Manifest::files
  std::string dataset;   // absolute path inside the HDF5 file
  int64_t position = 0;  // of the first byte in the file
  std::vector<int64_t> offset;
  std::vector<int64_t> shape;
  uint32_t crc = 0;  // CRC32C of the bytes
};

struct ManifestTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::vector<StoredSlice> slices;
};

struct ManifestFile {
  std::string name;
  int64_t bytes = 0;
  std::string sha256;
};

struct Manifest {
  int64_t step = 0;
  nlohmann::json state;
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;
};

// Format sizes as "[128, 0]" and checksums as "0a1b2c3d".
std::string brackets(std::span<const int64_t> numbers);
std::string hex8(uint32_t value);

// Bytes of a tensor of this shape. Throws Error if there are not 1 or 2 sizes, a size is below 1, or the product does
// not fit 62 bits.
int64_t checked_bytes(const std::vector<int64_t>& shape, DType dtype);

// Throws Error if a tensor's name is empty, too long, has characters that are not printable ASCII, or has a component
// "", "." or ".." between slashes.
void check_tensor_name(const std::string& name);

// Throws Error naming the tensor and the slices unless they cover every element exactly once.
void check_cover(const ManifestTensor& tensor);

// Calls check_cover() for each tensor. Throws Error too if a name is invalid, used twice, or the folder of another one.
void check_tensors(const std::vector<ManifestTensor>& tensors);

// Throws Error unless names, sizes and covers are valid and the slices are inside their files without overlap.
void check_manifest(const Manifest& manifest);

// Throws Error if JSON cannot represent the state exactly: NaN, invalid UTF-8, too deep nesting.
void check_state(const nlohmann::json& state);

// Appends the seal to `body`, a JSON object without its closing brace.
std::string seal_manifest(const std::string& body);

// The manifest as sealed text. Throws as check_state() does.
std::string manifest_text(const Manifest& manifest);

// Parses and checks manifest_text(). Throws Error with the problem but without the file's name, and UserError if the
// manifest is undamaged but has a version that this program does not support.
Manifest parse_manifest(std::string_view text);

}  // namespace tmamba
